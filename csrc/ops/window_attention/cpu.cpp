#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/layout.h"
#include "ops/window_attention/cpu_arguments.h"
#include "ops/window_attention/cpu_kernel.h"

namespace at::native {

DEFINE_DISPATCH(subquad_window_attention_forward_stub);
DEFINE_DISPATCH(subquad_window_attention_backward_stub);

} // namespace at::native

namespace subquad {

namespace {

constexpr const char* kOp = "window_attention";

void check_values(const DenseArguments& arguments) {
  const auto& inputs = arguments.inputs;
  const auto& options = arguments.options;
  if (options.summary_lengths.has_value()) {
    const int64_t* lengths = options.summary_lengths->const_data_ptr<int64_t>();
    const int64_t summaries = inputs.summary_key->size(2);
    for (int64_t row = 0; row < options.summary_lengths->size(0); ++row) {
      TORCH_CHECK_VALUE(
          lengths[row] >= 0 && lengths[row] <= summaries,
          kOp,
          ": summary_lengths must lie in [0, C = ",
          summaries,
          "], got ",
          lengths[row],
          " in row ",
          row);
    }
  }
}

WindowAttentionParams make_params(
    const DenseArguments& arguments,
    const at::Tensor& output,
    const at::Tensor& lse) {
  WindowAttentionParams params = make_params(arguments);
  params.output = output.mutable_data_ptr();
  params.output_stride = strides_of(output);
  params.logsumexp = lse.mutable_data_ptr();
  return params;
}

std::tuple<at::Tensor, at::Tensor> forward_cpu(
    const WindowAttentionInputs& inputs,
    const WindowAttentionOptions& options) {
  check_window_attention(inputs, options);
  const DenseArguments arguments(inputs, options);
  check_values(arguments);
  auto [output, lse] = empty_window_attention_outputs(inputs);
  constexpr double kNothing = -std::numeric_limits<double>::infinity();
  // Queries outside every row's span keep these values.
  if (options.query_spans.has_value() && !arguments.queries.scattered()) {
    output.zero_();
    lse.fill_(kNothing);
  }
  if (output.numel() > 0) {
    const at::Tensor row_output = arguments.queries.workspace(output);
    const at::Tensor row_lse = arguments.queries.workspace(lse);
    at::native::subquad_window_attention_forward_stub(
        at::kCPU,
        make_params(arguments, row_output, row_lse),
        inputs.query.scalar_type());
    arguments.queries.scatter(row_output, output);
    arguments.queries.scatter(row_lse, lse, kNothing);
  }
  return {output, lse};
}

WindowAttentionGradientTensors backward_cpu(
    const WindowAttentionSaved& saved,
    const WindowAttentionInputs& inputs,
    const WindowAttentionOptions& options,
    std::array<bool, 9> output_mask) {
  const DenseArguments arguments(inputs, options);
  const WindowAttentionGradientTensors result =
      empty_window_attention_gradients(inputs, output_mask);
  auto
      [query,
       key,
       value,
       bias,
       key_bias,
       relative_key,
       summary_key,
       summary_value,
       summary_relative_key] = result;
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
  grad_output = arguments.queries.gather(grad_output);
  const OptionalTensor grad_lse =
      dense(arguments.queries.gather(saved.grad_lse));
  const at::Tensor row_query = arguments.queries.workspace(query);
  const at::Tensor row_key = arguments.keys.workspace(key);
  const at::Tensor row_value = arguments.keys.workspace(value);
  const at::Tensor row_key_bias = arguments.keys.workspace(key_bias);

  const auto pointer = [&](size_t index, const at::Tensor& tensor) -> void* {
    return output_mask[index] ? tensor.mutable_data_ptr() : nullptr;
  };
  WindowAttentionGradients gradients{};
  gradients.grad_output = grad_output.const_data_ptr();
  gradients.grad_output_stride = strides_of(grad_output);
  gradients.grad_logsumexp = data_or_null(grad_lse);
  gradients.grad_query = pointer(0, row_query);
  gradients.grad_key = pointer(1, row_key);
  gradients.grad_value = pointer(2, row_value);
  if (output_mask[0]) {
    gradients.grad_query_stride = strides_of(row_query);
  }
  if (output_mask[1]) {
    gradients.grad_key_stride = strides_of(row_key);
  }
  if (output_mask[2]) {
    gradients.grad_value_stride = strides_of(row_value);
  }
  gradients.grad_bias = pointer(3, bias);
  gradients.grad_key_bias = pointer(4, row_key_bias);
  gradients.grad_relative_key = pointer(5, relative_key);
  gradients.grad_summary_key = pointer(6, summary_key);
  gradients.grad_summary_value = pointer(7, summary_value);
  gradients.grad_summary_relative_key = pointer(8, summary_relative_key);
  // Rows of the batch that no span covers, and tables that no query reads, have
  // zero gradients; with spans not every element is written by the kernel.
  if (options.query_spans.has_value() && output_mask[0]) {
    row_query.zero_();
  }
  const at::Tensor output = arguments.queries.gather(saved.output);
  const at::Tensor lse = arguments.queries.gather(saved.lse);
  const WindowAttentionParams params = make_params(arguments, output, lse);
  at::native::subquad_window_attention_backward_stub(
      at::kCPU, params, gradients, inputs.query.scalar_type());
  const auto scatter = [&](size_t index,
                           const Rows& rows,
                           const at::Tensor& from,
                           const at::Tensor& to) {
    if (output_mask[index]) {
      rows.scatter(from, to);
    }
  };
  scatter(0, arguments.queries, row_query, query);
  scatter(1, arguments.keys, row_key, key);
  scatter(2, arguments.keys, row_value, value);
  scatter(4, arguments.keys, row_key_bias, key_bias);
  return result;
}

TORCH_LIBRARY_IMPL(subquad, CPU, m) {
  m.impl(
      "_window_attention_forward", WindowAttentionForward<&forward_cpu>::call);
  m.impl(
      "_window_attention_backward",
      WindowAttentionBackward<&backward_cpu>::call);
}

} // namespace

} // namespace subquad
