#include <torch/library.h>

#include "ops/random_features/arguments.h"
#include "ops/random_features/cpu_kernel.h"
#include "ops/rows.h"

namespace at::native {

DEFINE_DISPATCH(subquad_random_features_forward_stub);
DEFINE_DISPATCH(subquad_random_features_backward_stub);

} // namespace at::native

namespace subquad {

namespace {

// The rows as spans, gathered where they are none; tables are dense.
Rows place_rows(RandomFeaturesInputs& inputs, RandomFeaturesOptions& options) {
  const Rows rows(
      "random_features",
      "valid",
      options.spans,
      options.order,
      inputs.input.size(2));
  inputs.input = rows.gather(inputs.input);
  options.spans = rows.spans();
  options.order.reset();
  make_tables_dense(inputs, options);
  return rows;
}

RandomFeaturesOutputs forward_cpu(
    RandomFeaturesInputs inputs,
    RandomFeaturesOptions options) {
  check_random_features(inputs, options);
  auto [features, log_scale] = empty_random_features_outputs(inputs, options);
  const Rows rows = place_rows(inputs, options);
  // Tokens outside every row's span keep these values.
  if (options.spans.has_value() && !rows.scattered()) {
    features.zero_();
    log_scale.zero_();
  }
  if (features.numel() > 0) {
    const at::Tensor row_features = rows.workspace(features);
    const at::Tensor row_log_scale = rows.workspace(log_scale);
    at::native::subquad_random_features_forward_stub(
        at::kCPU,
        make_params(inputs, options, row_features, row_log_scale),
        inputs.input.scalar_type());
    rows.scatter(row_features, features);
    rows.scatter(row_log_scale, log_scale);
  }
  return {features, log_scale};
}

RandomFeaturesGradientTensors backward_cpu(
    RandomFeaturesSaved saved,
    RandomFeaturesInputs inputs,
    RandomFeaturesOptions options,
    std::array<bool, 3> output_mask) {
  const RandomFeaturesGradientTensors result =
      empty_random_features_gradients(inputs, output_mask);
  const auto& [grad_input, grad_projection, grad_initial] = result;
  if (inputs.input.numel() == 0) {
    std::apply(
        [](const auto&... gradient) { (gradient.zero_(), ...); }, result);
    return result;
  }
  const Rows rows = place_rows(inputs, options);
  make_gradients_dense(saved);
  saved.grad_features = rows.gather(saved.grad_features);
  saved.grad_log_scale = rows.gather(saved.grad_log_scale);
  saved.log_scale = rows.gather(saved.log_scale);
  const at::Tensor row_grad_input =
      output_mask[0] ? rows.workspace(grad_input) : grad_input;
  if (options.spans.has_value() && !rows.scattered()) {
    row_grad_input.zero_();
  }
  at::native::subquad_random_features_backward_stub(
      at::kCPU,
      make_params(inputs, options, at::Tensor(), saved.log_scale),
      make_gradients(
          saved, {row_grad_input, grad_projection, grad_initial}, output_mask),
      inputs.input.scalar_type());
  if (output_mask[0]) {
    rows.scatter(row_grad_input, grad_input);
  }
  return result;
}

TORCH_LIBRARY_IMPL(subquad, CPU, m) {
  m.impl("_random_features_forward", RandomFeaturesForward<&forward_cpu>::call);
  m.impl(
      "_random_features_backward", RandomFeaturesBackward<&backward_cpu>::call);
}

} // namespace

} // namespace subquad
