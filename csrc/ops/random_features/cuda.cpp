#include <ATen/ops/empty.h>

#include "cuda/context.h"
#include "cuda/dtype.h"
#include "cuda/registration.h"
#include "ops/random_features/arguments.h"
#include "ops/random_features/backward_workspace.h"
#include "ops/random_features/cuda_kernel.h"
#include "ops/spans.h"

namespace subquad {

namespace {

void check_head_dim(const at::Tensor& input) {
  // What a tile of tokens and of projections has room for.
  constexpr int64_t kMaxHeadDim = 256;
  TORCH_CHECK_NOT_IMPLEMENTED(
      input.size(3) <= kMaxHeadDim,
      "random_features: the head dimension D is at most ",
      kMaxHeadDim,
      " on CUDA, got ",
      input.size(3));
}

void make_dense_and_in_place(
    RandomFeaturesInputs& inputs,
    RandomFeaturesOptions& options) {
  make_tables_dense(inputs, options);
  place_ordered_rows(options.spans, options.order);
}

RandomFeaturesOutputs forward_cuda(
    RandomFeaturesInputs inputs,
    RandomFeaturesOptions options) {
  const cuda::DeviceGuard guard(inputs.input);
  check_random_features(inputs, options);
  check_head_dim(inputs.input);
  make_dense_and_in_place(inputs, options);
  auto [features, log_scale] = empty_random_features_outputs(inputs, options);
  // Tokens outside every row keep these values.
  if (options.spans.has_value()) {
    features.zero_();
    log_scale.zero_();
  }
  if (features.numel() > 0) {
    cuda::check(launch_random_features_forward(
        make_params(inputs, options, features, log_scale),
        cuda::scalar_kind(features),
        cuda::current_stream()));
  }
  return {features, log_scale};
}

RandomFeaturesGradientTensors backward_cuda(
    RandomFeaturesSaved saved,
    RandomFeaturesInputs inputs,
    RandomFeaturesOptions options,
    std::array<bool, 3> output_mask) {
  const cuda::DeviceGuard guard(inputs.input);
  check_head_dim(inputs.input);
  const RandomFeaturesGradientTensors result =
      empty_random_features_gradients(inputs, output_mask);
  if (inputs.input.numel() == 0) {
    std::apply(
        [](const auto&... gradient) { (gradient.zero_(), ...); }, result);
    return result;
  }
  make_dense_and_in_place(inputs, options);
  make_gradients_dense(saved);
  const RandomFeaturesParams params =
      make_params(inputs, options, at::Tensor(), saved.log_scale);
  const auto& [grad_input, grad_projection, grad_initial] = result;
  // Tokens outside every row keep these, as does what has no part in m.
  if (options.spans.has_value()) {
    grad_input.zero_();
  }
  if (!random_features::has_scale_gradient(params)) {
    grad_initial.zero_();
  }
  const RandomFeaturesGradients gradients =
      make_gradients(saved, result, output_mask);
  const auto bytes = static_cast<int64_t>(
      random_features::backward_workspace(
          params, gradients, saved.log_scale.element_size(), nullptr)
          .bytes);
  const at::Tensor workspace =
      at::empty({bytes}, inputs.input.options().dtype(at::kByte));
  cuda::check(launch_random_features_backward(
      params,
      gradients,
      workspace.mutable_data_ptr(),
      cuda::scalar_kind(inputs.input),
      cuda::current_stream()));
  return result;
}

SUBQUAD_CUDA_IMPL(m) {
  m.impl(
      "_random_features_forward", RandomFeaturesForward<&forward_cuda>::call);
  m.impl(
      "_random_features_backward",
      RandomFeaturesBackward<&backward_cuda>::call);
}

} // namespace

} // namespace subquad
