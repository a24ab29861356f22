#include "cuda/launcher.cuh"
#include "ops/random_features/cuda_kernel.h"
#include "ops/random_features/kernel_backward.cuh"

namespace subquad {

int launch_random_features_backward(
    const RandomFeaturesParams& params,
    const RandomFeaturesGradients& gradients,
    void* workspace,
    ScalarKind dtype,
    void* stream) {
  return launch_random_features_backward(
      cuda::Launcher{stream}, params, gradients, workspace, dtype);
}

} // namespace subquad
