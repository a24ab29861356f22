#pragma once

#include <cstdint>
#include <utility>

#include "common/scalar_kind.h"

namespace subquad::cuda {

// c = op(a) op(b) + beta c for each of `batch` triples of column-major
// matrices, where op transposes or not. Strides count elements; the stride of a
// matrix is that between its columns. Sums are in float32 (float64 for float64)
// and in TF32 only where PyTorch's setting allows it.
struct Gemm {
  ScalarKind dtype;
  bool transpose_a;
  bool transpose_b;
  int64_t m; // op(a) [m, k], op(b) [k, n], c [m, n]
  int64_t n;
  int64_t k;
  const void* a;
  int64_t a_stride;
  int64_t a_batch_stride;
  const void* b;
  int64_t b_stride;
  int64_t b_batch_stride;
  double beta; // 0: c is not read
  void* c;
  int64_t c_stride;
  int64_t c_batch_stride;
  int64_t batch;
};

// Runs on the current stream of the current device; m, n, k and batch are
// positive.
void gemm(const Gemm& gemm);

// The same for row-major matrices, with strides between rows: the memory of a
// row-major matrix is its transpose in column-major order, and
// c^T = op(b)^T op(a)^T.
inline Gemm row_major(Gemm gemm) {
  std::swap(gemm.m, gemm.n);
  std::swap(gemm.transpose_a, gemm.transpose_b);
  std::swap(gemm.a, gemm.b);
  std::swap(gemm.a_stride, gemm.b_stride);
  std::swap(gemm.a_batch_stride, gemm.b_batch_stride);
  return gemm;
}

} // namespace subquad::cuda
