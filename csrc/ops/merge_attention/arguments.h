#pragma once

#include "common/merge_attention.h"
#include "ops/layout.h"
#include "ops/merge_attention/merge_attention.h"
#include "ops/optional.h"

// From tensors to what kernels are told, for every device.
namespace subquad {

// Outputs are read through their strides, lse is made dense.
inline MergeAttentionInputs dense_inputs(
    const at::Tensor& output_a,
    const at::Tensor& lse_a,
    const at::Tensor& output_b,
    const at::Tensor& lse_b) {
  return {output_a, lse_a.contiguous(), output_b, lse_b.contiguous()};
}

inline MergeAttentionParams make_params(const MergeAttentionInputs& inputs) {
  MergeAttentionParams params{};
  params.batch = inputs.output_a.size(0);
  params.heads = inputs.output_a.size(1);
  params.length = inputs.output_a.size(2);
  params.width = inputs.output_a.size(3);
  params.output_a = inputs.output_a.const_data_ptr();
  params.output_a_stride = strides_of(inputs.output_a);
  params.lse_a = inputs.lse_a.const_data_ptr();
  params.output_b = inputs.output_b.const_data_ptr();
  params.output_b_stride = strides_of(inputs.output_b);
  params.lse_b = inputs.lse_b.const_data_ptr();
  return params;
}

// Checks, allocates, and calls launch(params).
template <typename Launch>
MergeAttentionOutputs run_merge_attention_forward(
    const at::Tensor& output_a,
    const at::Tensor& lse_a,
    const at::Tensor& output_b,
    const at::Tensor& lse_b,
    const Launch& launch) {
  check_merge_attention({output_a, lse_a, output_b, lse_b});
  const MergeAttentionInputs inputs =
      dense_inputs(output_a, lse_a, output_b, lse_b);
  auto [output, lse] = empty_merge_attention_outputs(inputs);
  if (lse.numel() > 0) {
    MergeAttentionParams params = make_params(inputs);
    params.output = output.mutable_data_ptr();
    params.output_stride = strides_of(output);
    params.lse = lse.mutable_data_ptr();
    launch(params);
  }
  return {output, lse};
}

// Calls launch(params, gradients).
template <typename Launch>
MergeAttentionGradientTensors run_merge_attention_backward(
    const std::optional<at::Tensor>& given_grad_output,
    const std::optional<at::Tensor>& given_grad_lse,
    const at::Tensor& output_a,
    const at::Tensor& lse_a,
    const at::Tensor& output_b,
    const at::Tensor& lse_b,
    std::array<bool, 4> output_mask,
    const Launch& launch) {
  const MergeAttentionInputs inputs =
      dense_inputs(output_a, lse_a, output_b, lse_b);
  const MergeAttentionGradientTensors result =
      empty_merge_attention_gradients(inputs, output_mask);
  if (lse_a.numel() == 0) {
    return result;
  }
  MergeAttentionGradients gradients{};
  at::Tensor grad_output;
  if (given_grad_output.has_value()) {
    grad_output = dense_last_axis(*given_grad_output);
    gradients.grad_output = grad_output.const_data_ptr();
    gradients.grad_output_stride = strides_of(grad_output);
  }
  at::Tensor grad_lse;
  if (given_grad_lse.has_value()) {
    grad_lse = given_grad_lse->contiguous();
    gradients.grad_lse = grad_lse.const_data_ptr();
  }
  const auto& [grad_output_a, grad_lse_a, grad_output_b, grad_lse_b] = result;
  if (output_mask[0]) {
    gradients.grad_output_a = grad_output_a.mutable_data_ptr();
    gradients.grad_output_a_stride = strides_of(grad_output_a);
  }
  if (output_mask[1]) {
    gradients.grad_lse_a = grad_lse_a.mutable_data_ptr();
  }
  if (output_mask[2]) {
    gradients.grad_output_b = grad_output_b.mutable_data_ptr();
    gradients.grad_output_b_stride = strides_of(grad_output_b);
  }
  if (output_mask[3]) {
    gradients.grad_lse_b = grad_lse_b.mutable_data_ptr();
  }
  launch(make_params(inputs), gradients);
  return result;
}

} // namespace subquad
