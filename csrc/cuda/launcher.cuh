#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace subquad::cuda {

// Launches kernels for the host dispatch of kernel.cuh, which sees this type or
// the emulator's. Returns a cudaError_t; 0 is success.
struct Launcher {
  void* stream = nullptr;

  template <class... Params, class... Args>
  int operator()(
      void (*kernel)(Params...),
      dim3 grid,
      dim3 block,
      size_t shared_bytes,
      Args&&... args) const {
    // More than this must be asked for, once per kernel and device.
    constexpr size_t kDefaultSharedBytes = 48 * 1024;
    if (shared_bytes > kDefaultSharedBytes) {
      const cudaError_t error = cudaFuncSetAttribute(
          kernel,
          cudaFuncAttributeMaxDynamicSharedMemorySize,
          static_cast<int>(shared_bytes));
      if (error != cudaSuccess) {
        return error;
      }
    }
    kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(
        static_cast<Params>(args)...);
    return cudaGetLastError();
  }
};

} // namespace subquad::cuda
