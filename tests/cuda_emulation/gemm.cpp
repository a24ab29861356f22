#include "cuda/gemm.h"

#include <ATen/OpMathType.h>
#include <ATen/ops/add.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/matmul.h>

// The interface of cuBLAS by ATen's product, which takes any strides.
namespace subquad::cuda {

namespace {

at::ScalarType scalar_type(ScalarKind kind) {
  switch (kind) {
    case ScalarKind::kDouble:
      return at::kDouble;
    case ScalarKind::kFloat:
      return at::kFloat;
    case ScalarKind::kBFloat16:
      return at::kBFloat16;
    default:
      return at::kHalf;
  }
}

// [batch, rows, columns] in column-major memory
at::Tensor matrices(
    const Gemm& gemm,
    const void* data,
    int64_t rows,
    int64_t columns,
    int64_t stride,
    int64_t batch_stride) {
  TORCH_CHECK(stride >= rows, "gemm: columns of ", rows, " rows overlap");
  return at::from_blob(
      const_cast<void*>(data),
      {gemm.batch, rows, columns},
      {batch_stride, 1, stride},
      scalar_type(gemm.dtype));
}

} // namespace

void gemm(const Gemm& gemm) {
  const auto operand = [&](bool transpose,
                           const void* data,
                           int64_t rows,
                           int64_t columns,
                           int64_t stride,
                           int64_t batch_stride) {
    return transpose
        ? matrices(gemm, data, columns, rows, stride, batch_stride)
              .transpose(1, 2)
        : matrices(gemm, data, rows, columns, stride, batch_stride);
  };
  const at::Tensor a = operand(
      gemm.transpose_a,
      gemm.a,
      gemm.m,
      gemm.k,
      gemm.a_stride,
      gemm.a_batch_stride);
  const at::Tensor b = operand(
      gemm.transpose_b,
      gemm.b,
      gemm.k,
      gemm.n,
      gemm.b_stride,
      gemm.b_batch_stride);
  const at::Tensor c = matrices(
      gemm, gemm.c, gemm.m, gemm.n, gemm.c_stride, gemm.c_batch_stride);
  const auto wide = [](const at::Tensor& tensor) {
    return tensor.to(at::toOpMathType(tensor.scalar_type()));
  };
  const at::Tensor product = at::matmul(wide(a), wide(b));
  c.copy_(gemm.beta == 0.0 ? product : at::add(product, wide(c), gemm.beta));
}

} // namespace subquad::cuda
