#include "cuda/launcher.cuh"
#include "ops/merge_attention/cuda_kernel.h"
#include "ops/merge_attention/kernel.cuh"

namespace subquad {

int launch_merge_attention_forward(
    const MergeAttentionParams& params,
    ScalarKind dtype,
    void* stream) {
  return launch_merge_attention_forward(cuda::Launcher{stream}, params, dtype);
}

int launch_merge_attention_backward(
    const MergeAttentionParams& params,
    const MergeAttentionGradients& gradients,
    ScalarKind dtype,
    void* stream) {
  return launch_merge_attention_backward(
      cuda::Launcher{stream}, params, gradients, dtype);
}

} // namespace subquad
