#include "cuda/launcher.cuh"
#include "ops/linear_attention/cuda_kernel.h"
#include "ops/linear_attention/kernel_forward.cuh"

namespace subquad {

int launch_linear_attention_forward(
    const LinearAttentionParams& params,
    void* workspace,
    ScalarKind dtype,
    void* stream) {
  return cuda::dispatch_linear_attention_forward(
      cuda::Launcher{stream}, params, workspace, dtype);
}

} // namespace subquad
