#include "cuda/gemm.h"

#include <ATen/cuda/Exceptions.h>
#include <cublas_v2.h>

#include "cuda/context.h"

namespace subquad::cuda {

namespace {

cudaDataType_t data_type(ScalarKind kind) {
  switch (kind) {
    case ScalarKind::kDouble:
      return CUDA_R_64F;
    case ScalarKind::kFloat:
      return CUDA_R_32F;
    case ScalarKind::kBFloat16:
      return CUDA_R_16BF;
    default:
      return CUDA_R_16F;
  }
}

} // namespace

void gemm(const Gemm& gemm) {
  // PyTorch gives the handle its stream, its workspace and the setting of TF32
  // each time.
  const auto handle = static_cast<cublasHandle_t>(blas_handle());
  const cudaDataType_t type = data_type(gemm.dtype);
  if (type == CUDA_R_16BF || type == CUDA_R_16F) {
    TORCH_CUDABLAS_CHECK(cublasSetMathMode(
        handle, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION));
  }
  const bool is_double = type == CUDA_R_64F;
  const double double_alpha = 1.0;
  const float float_alpha = 1.0f;
  const float float_beta = static_cast<float>(gemm.beta);
  const auto scalar = [&](const double& wide, const float& narrow) {
    return is_double ? static_cast<const void*>(&wide) : &narrow;
  };
  const auto operation = [](bool transpose) {
    return transpose ? CUBLAS_OP_T : CUBLAS_OP_N;
  };
  TORCH_CUDABLAS_CHECK(cublasGemmStridedBatchedEx_64(
      handle,
      operation(gemm.transpose_a),
      operation(gemm.transpose_b),
      gemm.m,
      gemm.n,
      gemm.k,
      scalar(double_alpha, float_alpha),
      gemm.a,
      type,
      gemm.a_stride,
      gemm.a_batch_stride,
      gemm.b,
      type,
      gemm.b_stride,
      gemm.b_batch_stride,
      scalar(gemm.beta, float_beta),
      gemm.c,
      type,
      gemm.c_stride,
      gemm.c_batch_stride,
      gemm.batch,
      is_double ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
      CUBLAS_GEMM_DEFAULT));
}

} // namespace subquad::cuda
