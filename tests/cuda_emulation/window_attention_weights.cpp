#include "launcher.h"
#include "ops/window_attention_weights/cuda_kernel.h"
#include "ops/window_attention_weights/kernel.cuh"
#include "window_operands.h"

namespace subquad {

namespace {

int64_t weights_of(const WindowAttentionParams& params) {
  return params.batch * params.heads * params.query_length *
      window_slots(params.window);
}

} // namespace

int launch_window_attention_weights_forward(
    const WindowAttentionParams& params,
    void* weights,
    ScalarKind dtype,
    void* /* stream */) {
  Operands operands = window_operands(params, dtype);
  operands.lines("logsumexp", params.logsumexp, true);
  operands.dense("weights", weights, weights_of(params), false);
  return launch_window_attention_weights_forward(
      emu::Launcher(), params, weights, dtype);
}

int launch_window_attention_weights_backward(
    const WindowAttentionParams& params,
    const WindowAttentionWeightsGradientParams& gradients,
    ScalarKind dtype,
    void* /* stream */) {
  const int64_t slots = window_slots(params.window);
  const auto tables = [&](int64_t head_stride) {
    return head_stride == 0 ? int64_t{1} : params.heads;
  };
  Operands operands = window_operands(params, dtype);
  operands.dense("grad", gradients.grad, weights_of(params), true);
  operands.dense("weights", gradients.weights, weights_of(params), true);
  operands.output(
      "grad_query",
      gradients.grad_query,
      gradients.grad_query_stride,
      params.head_dim);
  operands.strided(
      "grad_key",
      gradients.grad_key,
      gradients.grad_key_stride,
      params.batch,
      params.key_heads,
      params.key_length,
      params.head_dim,
      false);
  operands.lines("grad_lse", gradients.grad_lse, false);
  operands.dense(
      "grad_bias",
      gradients.grad_bias,
      tables(params.bias_head_stride) * params.window.block * slots,
      false);
  operands.dense(
      "grad_key_bias",
      gradients.grad_key_bias,
      params.batch * params.key_length,
      false);
  operands.dense(
      "grad_relative_key",
      gradients.grad_relative_key,
      tables(params.relative_key_head_stride) * slots * params.head_dim,
      false);
  return launch_window_attention_weights_backward(
      emu::Launcher(), params, gradients, dtype);
}

} // namespace subquad
