#include "cuda/launcher.cuh"
#include "ops/sequence_pool/cuda_kernel.h"
#include "ops/sequence_pool/kernel_backward.cuh"

namespace subquad {

int launch_sequence_pool_forward(
    const SequencePoolParams& params,
    void* workspace,
    ScalarKind dtype,
    void* stream) {
  return launch_sequence_pool_forward(
      cuda::Launcher{stream}, params, workspace, dtype);
}

int launch_sequence_pool_backward(
    const SequencePoolParams& params,
    const SequencePoolGradients& gradients,
    void* workspace,
    ScalarKind dtype,
    void* stream) {
  return launch_sequence_pool_backward(
      cuda::Launcher{stream}, params, gradients, workspace, dtype);
}

} // namespace subquad
