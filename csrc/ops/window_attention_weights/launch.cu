#include "cuda/launcher.cuh"
#include "ops/window_attention_weights/cuda_kernel.h"
#include "ops/window_attention_weights/kernel.cuh"

namespace subquad {

int launch_window_attention_weights_forward(
    const WindowAttentionParams& params,
    void* weights,
    ScalarKind dtype,
    void* stream) {
  return launch_window_attention_weights_forward(
      cuda::Launcher{stream}, params, weights, dtype);
}

int launch_window_attention_weights_backward(
    const WindowAttentionParams& params,
    const WindowAttentionWeightsGradientParams& gradients,
    ScalarKind dtype,
    void* stream) {
  return launch_window_attention_weights_backward(
      cuda::Launcher{stream}, params, gradients, dtype);
}

} // namespace subquad
