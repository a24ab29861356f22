#include "launcher.h"
#include "linear_operands.h"
#include "ops/linear_attention/cuda_kernel.h"
#include "ops/linear_attention/kernel_backward.cuh"

namespace subquad {

int launch_linear_attention_backward(
    const LinearAttentionParams& params,
    const LinearAttentionGradients& gradients,
    void* workspace,
    ScalarKind dtype,
    void* /* stream */) {
  const int64_t B = params.batch;
  const int64_t Hkv = params.key_heads;
  const int64_t S = params.key_length;
  const int64_t M = params.value_dim;
  const int64_t lanes = params.rows * Hkv;
  const size_t acc_bytes = dtype == ScalarKind::kDouble ? 8 : 4;
  Operands operands = linear_operands(params, dtype, false);
  const auto wide =
      [&](const char* name, const void* data, int64_t count, bool read_only) {
        operands.bytes(name, data, count * acc_bytes, read_only);
      };
  operands.input(
      "grad_output", gradients.grad_output, gradients.grad_output_stride, M);
  const int64_t features = lanes * params.features;
  wide("grad_new_state_kv", gradients.grad_new_state_kv, features * M, true);
  wide("grad_new_state_k", gradients.grad_new_state_k, features, true);
  wide(
      "grad_new_state_log_scale",
      gradients.grad_new_state_log_scale,
      lanes,
      true);
  if (gradients.grad_query != nullptr) {
    operands.output(
        "grad_query",
        gradients.grad_query,
        gradients.grad_query_stride,
        params.head_dim);
  }
  if (gradients.grad_key != nullptr) {
    operands.strided(
        "grad_key",
        gradients.grad_key,
        gradients.grad_key_stride,
        B,
        Hkv,
        S,
        params.head_dim,
        false);
  }
  if (gradients.grad_value != nullptr) {
    operands.strided(
        "grad_value",
        gradients.grad_value,
        gradients.grad_value_stride,
        B,
        Hkv,
        S,
        M,
        false);
  }
  wide("grad_key_log_scale", gradients.grad_key_log_scale, B * Hkv * S, false);
  wide("grad_state_kv", gradients.grad_state_kv, features * M, false);
  wide("grad_state_k", gradients.grad_state_k, features, false);
  wide("grad_state_log_scale", gradients.grad_state_log_scale, lanes, false);
  operands.bytes(
      "workspace",
      workspace,
      cuda::linear_attention_workspace(
          params, &gradients, size_of(dtype), nullptr)
          .bytes,
      false);
  return cuda::dispatch_linear_attention_backward(
      emu::Launcher(), params, gradients, workspace, dtype);
}

} // namespace subquad
