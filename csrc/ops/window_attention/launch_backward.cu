#include "ops/window_attention/cuda_kernel.h"
#include "ops/window_attention/launch_backward.cuh"

namespace subquad {

int launch_window_attention_backward(
    const WindowAttentionParams& params,
    const WindowAttentionGradients& gradients,
    void* workspace,
    ScalarKind dtype,
    void* stream) {
  return cuda::dispatch_window_attention_backward(
      cuda::Launcher{stream}, params, gradients, workspace, dtype);
}

} // namespace subquad
