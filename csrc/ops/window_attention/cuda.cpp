#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include <limits>

#include "cuda/context.h"
#include "cuda/dtype.h"
#include "cuda/registration.h"
#include "ops/layout.h"
#include "ops/spans.h"
#include "ops/window_attention/arguments.h"
#include "ops/window_attention/backward_workspace.h"
#include "ops/window_attention/cuda_kernel.h"

namespace subquad {

namespace {

// What a tile of queries and of keys has room for.
constexpr int64_t kMaxHeadDim = 256;

void make_dense_and_in_place(
    WindowAttentionInputs& inputs,
    WindowAttentionOptions& options) {
  make_tables_dense(inputs, options);
  // Dropout numbers tokens by their place in the row's span, as on the CPU.
  place_ordered_rows(options.query_spans, options.query_order);
  place_ordered_rows(options.key_spans, options.key_order);
}

std::tuple<at::Tensor, at::Tensor> forward_cuda(
    const WindowAttentionInputs& given,
    const WindowAttentionOptions& given_options) {
  const cuda::DeviceGuard guard(given.query);
  check_window_attention(given, given_options);
  TORCH_CHECK_NOT_IMPLEMENTED(
      given.query.size(3) <= kMaxHeadDim,
      "window_attention: the head dimension D is at most ",
      kMaxHeadDim,
      " on CUDA, got ",
      given.query.size(3));
  WindowAttentionInputs inputs = given;
  WindowAttentionOptions options = given_options;
  make_dense_and_in_place(inputs, options);
  auto [output, lse] = empty_window_attention_outputs(inputs);
  // With an order nobody else writes the queries outside every row.
  if (options.query_order.has_value()) {
    output.zero_();
    lse.fill_(-std::numeric_limits<double>::infinity());
  }
  if (output.numel() > 0) {
    WindowAttentionParams params = make_params(inputs, options);
    params.output = output.mutable_data_ptr();
    params.output_stride = strides_of(output);
    params.logsumexp = lse.mutable_data_ptr();
    cuda::check(launch_window_attention_forward(
        params, cuda::scalar_kind(output), cuda::current_stream()));
  }
  return {output, lse};
}

WindowAttentionGradientTensors backward_cuda(
    const WindowAttentionSaved& saved,
    const WindowAttentionInputs& given,
    const WindowAttentionOptions& given_options,
    std::array<bool, 9> output_mask) {
  const cuda::DeviceGuard guard(given.query);
  TORCH_CHECK_NOT_IMPLEMENTED(
      given.query.size(3) <= kMaxHeadDim && given.value.size(3) <= kMaxHeadDim,
      "window_attention: the head dimension D and the value dimension M are at "
      "most ",
      kMaxHeadDim,
      " for gradients on CUDA, got ",
      given.query.size(3),
      " and ",
      given.value.size(3));
  WindowAttentionInputs inputs = given;
  WindowAttentionOptions options = given_options;
  make_dense_and_in_place(inputs, options);
  const WindowAttentionGradientTensors result =
      empty_window_attention_gradients(inputs, output_mask);
  const auto
      [query,
       key,
       value,
       bias,
       key_bias,
       relative_key,
       summary_key,
       summary_value,
       summary_relative_key] = result;
  const auto zero = [&](size_t index, const at::Tensor& gradient) {
    if (output_mask[index]) {
      gradient.zero_();
    }
  };
  // With an order nobody else writes what lies outside every row.
  if (options.query_order.has_value()) {
    zero(0, query);
  }
  if (options.key_order.has_value()) {
    zero(1, key);
    zero(2, value);
    zero(4, key_bias);
  }
  // Without queries nothing is computed and every gradient is zero.
  if (saved.output.numel() == 0) {
    std::apply(
        [](const auto&... gradient) { (gradient.zero_(), ...); }, result);
    return result;
  }
  // A gradient of lse alone comes without one of the output.
  at::Tensor grad_output = saved.grad_output.value_or(at::Tensor());
  if (!grad_output.defined()) {
    grad_output = at::zeros_like(saved.output);
  }
  grad_output = dense_last_axis(grad_output);
  const OptionalTensor grad_lse = dense(saved.grad_lse);
  const at::Tensor lse = saved.lse.contiguous();
  WindowAttentionParams params = make_params(inputs, options);
  // Inputs of this pass, which is told of them as of outputs.
  params.output = const_cast<void*>(saved.output.const_data_ptr());
  params.output_stride = strides_of(saved.output);
  params.logsumexp = const_cast<void*>(lse.const_data_ptr());

  const auto pointer = [&](size_t index, const at::Tensor& tensor) -> void* {
    return output_mask[index] ? tensor.mutable_data_ptr() : nullptr;
  };
  const auto strides = [&](size_t index, const at::Tensor& tensor) {
    return output_mask[index] ? strides_of(tensor) : Strides{};
  };
  WindowAttentionGradients gradients{};
  gradients.grad_output = grad_output.const_data_ptr();
  gradients.grad_output_stride = strides_of(grad_output);
  gradients.grad_logsumexp = data_or_null(grad_lse);
  gradients.grad_query = pointer(0, query);
  gradients.grad_query_stride = strides(0, query);
  gradients.grad_key = pointer(1, key);
  gradients.grad_key_stride = strides(1, key);
  gradients.grad_value = pointer(2, value);
  gradients.grad_value_stride = strides(2, value);
  gradients.grad_bias = pointer(3, bias);
  gradients.grad_key_bias = pointer(4, key_bias);
  gradients.grad_relative_key = pointer(5, relative_key);
  gradients.grad_summary_key = pointer(6, summary_key);
  gradients.grad_summary_value = pointer(7, summary_value);
  gradients.grad_summary_relative_key = pointer(8, summary_relative_key);

  const auto bytes = static_cast<int64_t>(
      cuda::backward_workspace(params, gradients, lse.element_size(), nullptr)
          .bytes);
  const at::Tensor workspace =
      at::empty({bytes}, inputs.query.options().dtype(at::kByte));
  cuda::check(launch_window_attention_backward(
      params,
      gradients,
      workspace.mutable_data_ptr(),
      cuda::scalar_kind(inputs.query),
      cuda::current_stream()));
  return result;
}

SUBQUAD_CUDA_IMPL(m) {
  m.impl(
      "_window_attention_forward", WindowAttentionForward<&forward_cuda>::call);
  m.impl(
      "_window_attention_backward",
      WindowAttentionBackward<&backward_cuda>::call);
}

} // namespace

} // namespace subquad
