#include "cuda/context.h"

#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

namespace subquad::cuda {

void* current_stream() {
  return c10::cuda::getCurrentCUDAStream().stream();
}

void* blas_handle() {
  return at::cuda::getCurrentCUDABlasHandle();
}

void check(int error) {
  C10_CUDA_CHECK(static_cast<cudaError_t>(error));
}

} // namespace subquad::cuda
