#include "launcher.h"
#include "ops/window_attention/cuda_kernel.h"
#include "ops/window_attention/kernel_backward.cuh"
#include "window_operands.h"

namespace subquad {

int launch_window_attention_backward(
    const WindowAttentionParams& params,
    const WindowAttentionGradients& gradients,
    void* workspace,
    ScalarKind dtype,
    void* /* stream */) {
  const int64_t B = params.batch;
  const int64_t S = params.key_length;
  const int64_t D = params.head_dim;
  const int64_t M = params.value_dim;
  const int64_t slots = window_slots(params.window);
  const auto tables = [&](int64_t head_stride) {
    return head_stride == 0 ? int64_t{1} : params.heads;
  };
  Operands operands = window_operands(params, dtype);
  operands.input("output", params.output, params.output_stride, M);
  operands.lines("logsumexp", params.logsumexp, true);
  operands.input(
      "grad_output", gradients.grad_output, gradients.grad_output_stride, M);
  operands.lines("grad_logsumexp", gradients.grad_logsumexp, true);
  operands.output(
      "grad_query", gradients.grad_query, gradients.grad_query_stride, D);
  operands.strided(
      "grad_key",
      gradients.grad_key,
      gradients.grad_key_stride,
      B,
      params.key_heads,
      S,
      D,
      false);
  operands.strided(
      "grad_value",
      gradients.grad_value,
      gradients.grad_value_stride,
      B,
      params.key_heads,
      S,
      M,
      false);
  const int64_t summaries = params.rows * params.key_heads * params.summaries;
  operands.dense(
      "grad_summary_key", gradients.grad_summary_key, summaries * D, false);
  operands.dense(
      "grad_summary_value", gradients.grad_summary_value, summaries * M, false);
  operands.dense(
      "grad_bias",
      gradients.grad_bias,
      tables(params.bias_head_stride) * params.window.block * slots,
      false);
  operands.dense("grad_key_bias", gradients.grad_key_bias, B * S, false);
  operands.dense(
      "grad_relative_key",
      gradients.grad_relative_key,
      tables(params.relative_key_head_stride) * slots * D,
      false);
  operands.dense(
      "grad_summary_relative_key",
      gradients.grad_summary_relative_key,
      tables(params.summary_relative_key_head_stride) *
          params.summary_relative_keys * D,
      false);
  const size_t acc_bytes = dtype == ScalarKind::kDouble ? 8 : 4;
  operands.bytes(
      "workspace",
      workspace,
      cuda::backward_workspace(params, gradients, acc_bytes, nullptr).bytes,
      false);
  return cuda::dispatch_window_attention_backward(
      emu::Launcher(), params, gradients, workspace, dtype);
}

} // namespace subquad
