#include "ops/linear_attention/cuda_kernel.h"
#include "ops/linear_attention/launch_backward.cuh"

namespace subquad {

int launch_linear_attention_backward(
    const LinearAttentionParams& params,
    const LinearAttentionGradients& gradients,
    void* workspace,
    ScalarKind dtype,
    void* stream) {
  return cuda::dispatch_linear_attention_backward(
      cuda::Launcher{stream}, params, gradients, workspace, dtype);
}

} // namespace subquad
