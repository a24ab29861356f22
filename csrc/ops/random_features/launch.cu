#include "cuda/launcher.cuh"
#include "ops/random_features/cuda_kernel.h"
#include "ops/random_features/kernel_forward.cuh"

namespace subquad {

int launch_random_features_forward(
    const RandomFeaturesParams& params,
    ScalarKind dtype,
    void* stream) {
  return launch_random_features_forward(cuda::Launcher{stream}, params, dtype);
}

} // namespace subquad
