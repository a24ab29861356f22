#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include "cuda/context.h"
#include "cuda/dtype.h"
#include "cuda/registration.h"
#include "ops/linear_attention/arguments.h"
#include "ops/linear_attention/cuda_kernel.h"
#include "ops/linear_attention/workspace.h"

namespace subquad {

namespace {

// For forward without gradients.
at::Tensor empty_workspace(
    const LinearAttentionParams& params,
    const LinearAttentionGradients* gradients,
    const at::Tensor& query) {
  const auto bytes =
      static_cast<int64_t>(cuda::linear_attention_workspace(
                               params, gradients, query.element_size(), nullptr)
                               .bytes);
  return at::empty({bytes}, query.options().dtype(at::kByte));
}

LinearAttentionOutputs forward_cuda(
    const LinearAttentionInputs& given,
    const LinearAttentionOptions& given_options) {
  const cuda::DeviceGuard guard(given.query);
  check_linear_attention(given, given_options);
  LinearAttentionInputs inputs = given;
  LinearAttentionOptions options = given_options;
  make_tables_dense(inputs, options);
  LinearAttentionOutputs outputs =
      empty_linear_attention_outputs(inputs, options);
  // Nobody else writes the queries outside every row.
  if (options.query_spans.has_value()) {
    std::get<0>(outputs).zero_();
    std::get<1>(outputs).zero_();
  }
  LinearAttentionParams params = make_params(inputs, options);
  set_outputs(params, outputs);
  const at::Tensor workspace = empty_workspace(params, nullptr, inputs.query);
  cuda::check(launch_linear_attention_forward(
      params,
      workspace.mutable_data_ptr(),
      cuda::scalar_kind(inputs.query),
      cuda::current_stream()));
  return outputs;
}

LinearAttentionGradientTensors backward_cuda(
    const LinearAttentionSaved& given_saved,
    const LinearAttentionInputs& given,
    const LinearAttentionOptions& given_options,
    std::array<bool, 7> output_mask) {
  const cuda::DeviceGuard guard(given.query);
  LinearAttentionInputs inputs = given;
  LinearAttentionOptions options = given_options;
  make_tables_dense(inputs, options);
  const LinearAttentionGradientTensors results =
      empty_linear_attention_gradients(inputs, output_mask);
  // Nobody else writes what lies outside every row.
  const auto& [query, key, value, key_log_scale, kv, k, log_scale] = results;
  if (options.query_spans.has_value()) {
    query.zero_();
  }
  if (options.key_spans.has_value()) {
    key.zero_();
    value.zero_();
    key_log_scale.zero_();
  }
  LinearAttentionSaved saved = given_saved;
  // Gradients of the new states alone come without one of the output.
  if (!saved.grad_output.has_value() || !saved.grad_output->defined()) {
    saved.grad_output = at::zeros_like(std::get<0>(saved.outputs));
  }
  saved = dense_saved(saved);
  LinearAttentionParams params = make_params(inputs, options);
  set_outputs(params, saved.outputs);
  const LinearAttentionGradients gradients =
      make_gradients(saved, results, output_mask);
  const at::Tensor workspace =
      empty_workspace(params, &gradients, inputs.query);
  cuda::check(launch_linear_attention_backward(
      params,
      gradients,
      workspace.mutable_data_ptr(),
      cuda::scalar_kind(inputs.query),
      cuda::current_stream()));
  return results;
}

SUBQUAD_CUDA_IMPL(m) {
  m.impl(
      "_linear_attention_forward", LinearAttentionForward<&forward_cuda>::call);
  m.impl(
      "_linear_attention_backward",
      LinearAttentionBackward<&backward_cuda>::call);
}

} // namespace

} // namespace subquad
