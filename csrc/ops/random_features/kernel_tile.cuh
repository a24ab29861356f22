#pragma once

#include <cmath>
#include <limits>

#include "common/random_features.h"
#include "cuda/rows.cuh"

// What the kernels of random features share: projections of a tile, and what
// becomes of one.
namespace subquad::random_features {

using namespace cuda;

inline __host__ __device__ bool has_sines(RandomFeatures kind) {
  return kind == RandomFeatures::kTrigonometric ||
      kind == RandomFeatures::kSinCos;
}

// Whether there is a maximum m at all.
inline __host__ __device__ bool is_stabilized(
    const RandomFeaturesParams& params) {
  return is_exponential(params.kind) && params.stabilizer != Stabilizer::kNone;
}

// R^-1/2
template <typename acc>
__device__ acc root(const RandomFeaturesParams& params) {
  return acc(1) /
      static_cast<acc>(sqrt(static_cast<double>(params.projections)));
}

// Two tiles with D columns; the first holds what the warps own.
template <typename T>
struct Shared {
  using Shape = RowShape<T>;
  T* rows;   // [kRows, D]
  T* others; // [kOthers, D]
  int stride;

  __device__ Shared(unsigned char* memory, int64_t width)
      : rows(reinterpret_cast<T*>(memory)), stride(tile_stride<T>(width)) {
    others = rows + Shape::kRows * stride;
  }

  __device__ unsigned char* end() const {
    return reinterpret_cast<unsigned char*>(others + Shape::kOthers * stride);
  }

  static size_t bytes(int64_t width) {
    return static_cast<size_t>(Shape::kRows + Shape::kOthers) *
        tile_stride<T>(width) * sizeof(T);
  }

  // This warp's rows.
  __device__ const T* own() const {
    return rows +
        static_cast<int>(threadIdx.x) / kWarpSize * kWarpRows * stride;
  }
};

// Whether tokens and projections can be staged with vectors.
struct Vectors {
  bool tokens;
  bool projections;
};

template <typename T>
Vectors vectors_of(const RandomFeaturesParams& params) {
  const int64_t D = params.head_dim;
  return {
      takes_vectors<T>(params.input, params.input_stride, D),
      takes_vectors<T>(params.projection, {0, 0, D}, D)};
}

// One head of one row, as blockIdx.x counts them.
struct Head {
  int64_t row;
  int64_t head;
  int64_t projection_head;
  TokenRow tokens;

  __device__ Head(const RandomFeaturesParams& params, int64_t row, int64_t head)
      : row(row),
        head(head),
        projection_head(head / (params.heads / params.projection_heads)),
        tokens(token_row(params, row)) {}

  // Of a dense [B, H, L] tensor.
  __device__ int64_t
  line(const RandomFeaturesParams& params, int64_t token) const {
    return (tokens.batch * params.heads + head) * params.length + token;
  }
};

// Starts copies of the tokens [first, first + rows) of a row.
template <typename T>
__device__ void stage_tokens(
    T* tile,
    int stride,
    int rows,
    const RandomFeaturesParams& params,
    const Head& at,
    int64_t first,
    bool vectors) {
  const T* input = head_of(
      static_cast<const T*>(params.input),
      params.input_stride,
      at.tokens.batch,
      at.head);
  stage_rows(
      tile,
      stride,
      rows,
      static_cast<int>(params.head_dim),
      vectors,
      params.input,
      [&](int r) -> const T* {
        return first + r < at.tokens.span.length
            ? input + at.tokens.token(first + r) * params.input_stride.row
            : nullptr;
      });
  cp_async_commit();
}

// Starts copies of the projections [first, first + rows).
template <typename T>
__device__ void stage_projections(
    T* tile,
    int stride,
    int rows,
    const RandomFeaturesParams& params,
    int64_t projection_head,
    int64_t first,
    bool vectors) {
  const T* projection = static_cast<const T*>(params.projection) +
      projection_head * params.projections * params.head_dim;
  stage_rows(
      tile,
      stride,
      rows,
      static_cast<int>(params.head_dim),
      vectors,
      params.projection,
      [&](int r) -> const T* {
        return first + r < params.projections
            ? projection + (first + r) * params.head_dim
            : nullptr;
      });
  cp_async_commit();
}

// All copies that this block started are there for all of its threads.
__device__ inline void wait_for_tiles() {
  cp_async_wait<0>();
  __syncthreads();
}

// p of this warp's rows with the other tile's.
template <typename T>
__device__ __forceinline__ void project(
    Fragment<acc_t<T>, RowShape<T>::kTiles>& p,
    const RandomFeaturesParams& params,
    const Shared<T>& shared) {
  p.zero();
  multiply_transposed<T, RowShape<T>::kTiles>(
      p,
      shared.own(),
      shared.stride,
      shared.others,
      shared.stride,
      padded_width(params.head_dim));
  const acc_t<T> scale = static_cast<acc_t<T>>(params.scale);
#pragma unroll
  for (int n = 0; n < RowShape<T>::kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      p.v[n][e] *= scale;
    }
  }
}

// n of a staged token; the same value in every kernel, on each of the four
// lanes that share the row.
template <typename T>
__device__ acc_t<T> half_square(
    const RandomFeaturesParams& params,
    const T* row) {
  acc_t<T> sum = 0;
  for (int column = lane_index() % 4; column < params.head_dim; column += 4) {
    const acc_t<T> x = to_acc(row[column]);
    sum = fused(x, x, sum);
  }
  return static_cast<acc_t<T>>(params.scale * params.scale / 2) * row_sum(sum);
}

// What turns p of a token into its features: exp(p - level) and the level, or
// sines and their amplitude.
template <typename acc>
__device__ __forceinline__ acc
level_of(const RandomFeaturesParams& params, acc root, acc n, acc m) {
  switch (params.kind) {
    case RandomFeatures::kPositive:
      return n + m;
    case RandomFeatures::kTrigonometric:
      return root * exponential(n - m);
    default:
      return root;
  }
}

} // namespace subquad::random_features
