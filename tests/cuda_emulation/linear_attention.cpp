#include "launcher.h"
#include "linear_operands.h"
#include "ops/linear_attention/cuda_kernel.h"
#include "ops/linear_attention/kernel_forward.cuh"

namespace subquad {

int launch_linear_attention_forward(
    const LinearAttentionParams& params,
    void* workspace,
    ScalarKind dtype,
    void* /* stream */) {
  Operands operands = linear_operands(params, dtype, true);
  operands.bytes(
      "workspace",
      workspace,
      cuda::linear_attention_workspace(params, nullptr, size_of(dtype), nullptr)
          .bytes,
      false);
  return cuda::dispatch_linear_attention_forward(
      emu::Launcher(), params, workspace, dtype);
}

} // namespace subquad
