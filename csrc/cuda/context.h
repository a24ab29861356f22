#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

// What the operators' CUDA code asks of the process. Kernels are launched
// nowhere but under a DeviceGuard and on current_stream().
namespace subquad::cuda {

// Makes the device of `tensor` current.
class DeviceGuard {
 public:
  explicit DeviceGuard(const at::Tensor& tensor)
      : guard_(tensor.device()) {}

 private:
  c10::DeviceGuard guard_;
};

// The stream (a cudaStream_t) on which PyTorch runs on the current device.
void* current_stream();

// PyTorch's cublasHandle_t for the current stream.
void* blas_handle();

// Throws what a cudaError_t other than 0 means.
void check(int error);

} // namespace subquad::cuda
