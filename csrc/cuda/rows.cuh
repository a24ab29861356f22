#pragma once

#include <cstdint>

#include "common/index.h"
#include "cuda/grid.h"
#include "cuda/tile.cuh"

// Tiles of tokens that belong to one row. Blocks are (row and head, tile,
// chunk of columns); tokens outside every row belong to no tile, and nothing of
// them is read or written.
namespace subquad::cuda {

// A block's warps own 16 rows each of a tile. Its operands are as wide as 8
// kTiles rows of the other one, so that both fit with 256 columns into the
// shared memory that every device from compute capability 8.0 on grants a
// block on request, 99 KiB. kColumns of the result are kept in registers.
template <typename T>
struct RowShape {
  static constexpr int kWarps = sizeof(T) == 8 ? 2 : 4;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kTiles = 16 / static_cast<int>(sizeof(T));
  static constexpr int kOthers = 8 * kTiles;
  static constexpr int kColumns = sizeof(T) == 8 ? 32 : 64;
  static constexpr int kThreads = kWarps * kWarpSize;
};

struct TokenRow {
  int64_t batch;
  Span span;
  const int64_t* order; // of the batch entry, or null
  int64_t size;         // tokens of the axis

  // Place on the axis of the row's i-th token.
  __device__ int64_t token(int64_t i) const {
    return clamped_token(order, 0, 0, span.start + i, size);
  }
};

template <typename Params>
__device__ TokenRow token_row(const Params& params, int64_t row) {
  const int64_t batch = params.packed ? 0 : row;
  return {
      batch,
      clamped_row_span(params.spans, row, params.length),
      params.order == nullptr ? nullptr : params.order + batch * params.length,
      params.length};
}

// Tokens of a row as far as the host knows: all of the axis, or the mean of
// packed rows.
template <typename Params>
int64_t expected_length(const Params& params) {
  return params.packed ? ceil_divide(params.length, max_index(params.rows, 1))
                       : params.length;
}

// Blocks for `columns` (rows and heads), for the tiles of each, and for chunks.
// A kernel takes the tiles from blockIdx.y in steps of gridDim.y. More columns
// than a grid has are refused when the kernel is launched.
inline dim3 row_grid(int64_t columns, int64_t tiles, int64_t chunks = 1) {
  constexpr int64_t kMax = 65535;
  return dim3(
      exact_grid_size(columns),
      static_cast<unsigned>(max_index(min_index(tiles, kMax), 1)),
      static_cast<unsigned>(chunks <= kMax ? max_index(chunks, 1) : 0));
}

// The first token of a head.
template <typename T>
__device__ __forceinline__ T*
head_of(T* data, const Strides& stride, int64_t batch, int64_t head) {
  return data + batch * stride.batch + head * stride.head;
}

} // namespace subquad::cuda
