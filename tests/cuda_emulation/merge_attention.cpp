#include "launcher.h"
#include "operands.h"
#include "ops/merge_attention/cuda_kernel.h"
#include "ops/merge_attention/kernel.cuh"

namespace subquad {

namespace {

Operands operands_of(const MergeAttentionParams& params, ScalarKind dtype) {
  Operands operands(params.batch, params.heads, params.length, dtype);
  operands.input(
      "output_a", params.output_a, params.output_a_stride, params.width);
  operands.input(
      "output_b", params.output_b, params.output_b_stride, params.width);
  operands.lines("lse_a", params.lse_a, true);
  operands.lines("lse_b", params.lse_b, true);
  return operands;
}

} // namespace

int launch_merge_attention_forward(
    const MergeAttentionParams& params,
    ScalarKind dtype,
    void* /* stream */) {
  Operands operands = operands_of(params, dtype);
  operands.output("output", params.output, params.output_stride, params.width);
  operands.lines("lse", params.lse, false);
  return launch_merge_attention_forward(emu::Launcher(), params, dtype);
}

int launch_merge_attention_backward(
    const MergeAttentionParams& params,
    const MergeAttentionGradients& gradients,
    ScalarKind dtype,
    void* /* stream */) {
  Operands operands = operands_of(params, dtype);
  operands.input(
      "grad_output",
      gradients.grad_output,
      gradients.grad_output_stride,
      params.width);
  operands.lines("grad_lse", gradients.grad_lse, true);
  operands.output(
      "grad_output_a",
      gradients.grad_output_a,
      gradients.grad_output_a_stride,
      params.width);
  operands.output(
      "grad_output_b",
      gradients.grad_output_b,
      gradients.grad_output_b_stride,
      params.width);
  operands.lines("grad_lse_a", gradients.grad_lse_a, false);
  operands.lines("grad_lse_b", gradients.grad_lse_b, false);
  return launch_merge_attention_backward(
      emu::Launcher(), params, gradients, dtype);
}

} // namespace subquad
