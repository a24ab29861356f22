#include "cuda/context.h"
#include "cuda/dtype.h"
#include "cuda/registration.h"
#include "ops/layout.h"
#include "ops/window_attention/arguments.h"
#include "ops/window_attention_weights/cuda_kernel.h"
#include "ops/window_attention_weights/signatures.h"

namespace subquad {

namespace {

at::Tensor forward_cuda(
    const WindowAttentionWeightsInputs& inputs,
    const WindowAttentionOptions& given_options) {
  const cuda::DeviceGuard guard(inputs.lse);
  check_window_attention_weights(inputs, given_options);
  WindowAttentionInputs attention = inputs.attention;
  WindowAttentionOptions options = given_options;
  make_tables_dense(attention, options);
  const at::Tensor lse = inputs.lse.contiguous();
  at::Tensor weights = empty_window_attention_weights(inputs, options).zero_();
  if (weights.numel() > 0) {
    WindowAttentionParams params = make_params(attention, options);
    params.logsumexp = const_cast<void*>(lse.const_data_ptr());
    cuda::check(launch_window_attention_weights_forward(
        params,
        weights.mutable_data_ptr(),
        cuda::scalar_kind(weights),
        cuda::current_stream()));
  }
  return weights;
}

WindowAttentionWeightsGradients backward_cuda(
    const at::Tensor& given_grad,
    const at::Tensor& given_weights,
    const WindowAttentionWeightsInputs& inputs,
    const WindowAttentionOptions& given_options,
    std::array<bool, 6> output_mask) {
  const cuda::DeviceGuard guard(inputs.lse);
  const WindowAttentionWeightsGradients result =
      empty_window_attention_weights_gradients(inputs, output_mask);
  std::apply([](const auto&... tensors) { (tensors.zero_(), ...); }, result);
  if (given_weights.numel() == 0) {
    return result;
  }
  WindowAttentionInputs attention = inputs.attention;
  WindowAttentionOptions options = given_options;
  make_tables_dense(attention, options);
  const at::Tensor grad = given_grad.contiguous();
  const at::Tensor weights = given_weights.contiguous();
  const auto& [query, key, lse, bias, key_bias, relative_key] = result;
  const auto pointer = [&](size_t index, const at::Tensor& tensor) -> void* {
    return output_mask[index] ? tensor.mutable_data_ptr() : nullptr;
  };
  WindowAttentionWeightsGradientParams gradients{};
  gradients.grad = grad.const_data_ptr();
  gradients.weights = weights.const_data_ptr();
  gradients.grad_query = pointer(0, query);
  gradients.grad_key = pointer(1, key);
  gradients.grad_lse = pointer(2, lse);
  gradients.grad_bias = pointer(3, bias);
  gradients.grad_key_bias = pointer(4, key_bias);
  gradients.grad_relative_key = pointer(5, relative_key);
  if (output_mask[0]) {
    gradients.grad_query_stride = strides_of(query);
  }
  if (output_mask[1]) {
    gradients.grad_key_stride = strides_of(key);
  }
  cuda::check(launch_window_attention_weights_backward(
      make_params(attention, options),
      gradients,
      cuda::scalar_kind(weights),
      cuda::current_stream()));
  return result;
}

SUBQUAD_CUDA_IMPL(m) {
  m.impl(
      "_window_attention_weights_forward",
      WindowAttentionWeightsForward<&forward_cuda>::call);
  m.impl(
      "_window_attention_weights_backward",
      WindowAttentionWeightsBackward<&backward_cuda>::call);
}

} // namespace

} // namespace subquad
