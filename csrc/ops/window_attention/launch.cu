#include "cuda/launcher.cuh"
#include "ops/window_attention/cuda_kernel.h"
#include "ops/window_attention/kernel_forward.cuh"

namespace subquad {

int launch_window_attention_forward(
    const WindowAttentionParams& params,
    ScalarKind dtype,
    void* stream) {
  return cuda::dispatch_window_attention_forward(
      cuda::Launcher{stream}, params, dtype);
}

} // namespace subquad
