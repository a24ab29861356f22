#include "ops/random_features/arguments.h"

#include "ops/layout.h"

namespace subquad {

void make_tables_dense(
    RandomFeaturesInputs& inputs,
    RandomFeaturesOptions& options) {
  inputs.projection = inputs.projection.contiguous();
  for (OptionalTensor* table :
       {&inputs.initial_log_scale, &options.spans, &options.order}) {
    *table = dense(*table);
  }
}

RandomFeaturesParams make_params(
    const RandomFeaturesInputs& inputs,
    const RandomFeaturesOptions& options,
    const at::Tensor& features,
    const at::Tensor& log_scale) {
  RandomFeaturesParams params{};
  params.batch = inputs.input.size(0);
  params.packed = options.packed;
  params.rows = options.packed ? options.spans->size(0) : inputs.input.size(0);
  params.heads = inputs.input.size(1);
  params.projection_heads = inputs.projection.size(0);
  params.length = inputs.input.size(2);
  params.head_dim = inputs.input.size(3);
  params.projections = inputs.projection.size(1);
  params.kind = parse_random_features(options.kind);
  params.features = random_feature_count(params.kind, params.projections);
  params.stabilizer = parse_stabilizer(options.stabilizer);
  params.stabilizer_gradient = options.stabilizer_gradient;
  params.eps = options.eps;
  params.scale = options.scale;
  params.spans = indices_or_null(options.spans);
  params.order = indices_or_null(options.order);
  params.input = inputs.input.const_data_ptr();
  params.input_stride = strides_of(inputs.input);
  params.projection = inputs.projection.const_data_ptr();
  params.initial_log_scale = data_or_null(inputs.initial_log_scale);
  if (features.defined()) {
    params.output = features.mutable_data_ptr();
    params.output_stride = strides_of(features);
  }
  params.log_scale = log_scale.mutable_data_ptr();
  return params;
}

void make_gradients_dense(RandomFeaturesSaved& saved) {
  saved.log_scale = saved.log_scale.contiguous();
  saved.grad_log_scale = dense(saved.grad_log_scale);
  if (saved.grad_features.has_value()) {
    saved.grad_features = dense_last_axis(*saved.grad_features);
  }
}

RandomFeaturesGradients make_gradients(
    const RandomFeaturesSaved& saved,
    const RandomFeaturesGradientTensors& result,
    std::array<bool, 3> output_mask) {
  const auto& [grad_input, grad_projection, grad_initial] = result;
  RandomFeaturesGradients gradients{};
  gradients.grad_output = data_or_null(saved.grad_features);
  if (saved.grad_features.has_value()) {
    gradients.grad_output_stride = strides_of(*saved.grad_features);
  }
  gradients.grad_log_scale = data_or_null(saved.grad_log_scale);
  if (output_mask[0]) {
    gradients.grad_input = grad_input.mutable_data_ptr();
    gradients.grad_input_stride = strides_of(grad_input);
  }
  if (output_mask[1]) {
    gradients.grad_projection = grad_projection.mutable_data_ptr();
  }
  if (output_mask[2]) {
    gradients.grad_initial_log_scale = grad_initial.mutable_data_ptr();
  }
  return gradients;
}

} // namespace subquad
