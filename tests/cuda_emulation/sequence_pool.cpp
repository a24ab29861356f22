#include "launcher.h"
#include "operands.h"
#include "ops/sequence_pool/cuda_kernel.h"
#include "ops/sequence_pool/kernel_backward.cuh"
#include "ops/sequence_pool/kernel_forward.cuh"

namespace subquad {

namespace {

int64_t slots_of(const SequencePoolParams& params) {
  return params.rows * params.heads * params.slots;
}

Operands
operands_of(const SequencePoolParams& params, ScalarKind dtype, bool backward) {
  Operands operands(params.batch, params.heads, params.length, dtype);
  operands.input("logits", params.logits, params.logits_stride, params.slots);
  operands.strided(
      "value",
      params.value,
      params.value_stride,
      params.batch,
      params.value_heads,
      params.length,
      params.value_dim,
      true);
  operands.indices("spans", params.spans, 2 * params.rows);
  operands.indices("order", params.order, params.batch * params.length);
  operands.dense(
      "output", params.output, slots_of(params) * params.value_dim, backward);
  operands.bytes(
      "lse", params.lse, slots_of(params) * acc_size_of(dtype), backward);
  return operands;
}

} // namespace

int launch_sequence_pool_forward(
    const SequencePoolParams& params,
    void* workspace,
    ScalarKind dtype,
    void* /* stream */) {
  Operands operands = operands_of(params, dtype, false);
  operands.bytes(
      "workspace",
      workspace,
      sequence_pool::forward_workspace(params, acc_size_of(dtype), nullptr)
          .bytes,
      false);
  return launch_sequence_pool_forward(
      emu::Launcher(), params, workspace, dtype);
}

int launch_sequence_pool_backward(
    const SequencePoolParams& params,
    const SequencePoolGradients& gradients,
    void* workspace,
    ScalarKind dtype,
    void* /* stream */) {
  Operands operands = operands_of(params, dtype, true);
  operands.dense(
      "grad_output",
      gradients.grad_output,
      slots_of(params) * params.value_dim,
      true);
  operands.bytes(
      "grad_lse",
      gradients.grad_lse,
      slots_of(params) * acc_size_of(dtype),
      true);
  operands.output(
      "grad_logits",
      gradients.grad_logits,
      gradients.grad_logits_stride,
      params.slots);
  operands.strided(
      "grad_value",
      gradients.grad_value,
      gradients.grad_value_stride,
      params.batch,
      params.value_heads,
      params.length,
      params.value_dim,
      false);
  operands.bytes(
      "workspace",
      workspace,
      sequence_pool::backward_workspace_bytes(params, acc_size_of(dtype)),
      false);
  return launch_sequence_pool_backward(
      emu::Launcher(), params, gradients, workspace, dtype);
}

} // namespace subquad
