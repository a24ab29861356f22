#include "cuda/launcher.cuh"
#include "ops/mask_to_spans/cuda_kernel.h"
#include "ops/mask_to_spans/kernel.cuh"

namespace subquad {

int launch_mask_to_spans(const MaskToSpansParams& params, void* stream) {
  return launch_mask_to_spans(cuda::Launcher{stream}, params);
}

} // namespace subquad
