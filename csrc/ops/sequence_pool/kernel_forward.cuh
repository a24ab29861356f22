#pragma once

#include <limits>

#include "common/sequence_pool.h"
#include "cuda/rows.cuh"
#include "ops/sequence_pool/workspace.h"

namespace subquad::sequence_pool {

using namespace cuda;

// One head of one row.
struct Head {
  int64_t row;
  int64_t head;
  int64_t value_head;
  TokenRow tokens;

  __device__ Head(const SequencePoolParams& params, int64_t row, int64_t head)
      : row(row),
        head(head),
        value_head(head / (params.heads / params.value_heads)),
        tokens(token_row(params, row)) {}

  // First slot of a dense [R, H, C] tensor.
  __device__ int64_t slots(const SequencePoolParams& params) const {
    return (row * params.heads + head) * params.slots;
  }
};

// Starts copies of columns of the values of the row's tokens [first, first +
// rows) before `end`.
template <typename T>
__device__ void stage_values(
    T* tile,
    int stride,
    int rows,
    const SequencePoolParams& params,
    const Head& at,
    int64_t first,
    int64_t end,
    int64_t first_column,
    int columns,
    bool vectors) {
  const T* value = head_of(
                       static_cast<const T*>(params.value),
                       params.value_stride,
                       at.tokens.batch,
                       at.value_head) +
      first_column;
  stage_rows(
      tile,
      stride,
      rows,
      columns,
      vectors,
      params.value,
      [&](int r) -> const T* {
        return first + r < end
            ? value + at.tokens.token(first + r) * params.value_stride.row
            : nullptr;
      });
  cp_async_commit();
}

// Columns [first, first + count) of M that a block's chunk has.
template <typename T>
struct Chunk {
  int64_t first;
  int columns;

  __device__ Chunk(int64_t chunk, int64_t value_dim)
      : first(chunk * RowShape<T>::kColumns),
        columns(static_cast<int>(
            min_index(value_dim - first, RowShape<T>::kColumns))) {}

  static int64_t count(int64_t value_dim) {
    return max_index(ceil_divide(value_dim, RowShape<T>::kColumns), 1);
  }
};

// One segment of tokens for a tile of slots and a chunk of columns. Grid:
// (rows * heads, segments, tiles of slots * chunks). A warp owns 16 slots; the
// tokens pass in steps of kOthers, their logits from global memory into the
// fragments of the product, their values through shared memory. Barriers order
// the copies before their readers and the readers before the next copies.
template <typename T>
__global__ void __launch_bounds__(RowShape<T>::kThreads, 1)
    sequence_pool_forward_kernel(
        SequencePoolParams params,
        int64_t segments,
        int64_t chunks,
        bool vectors,
        acc_t<T>* tops,
        acc_t<T>* totals,
        acc_t<T>* sums) {
  using Shape = RowShape<T>;
  using acc = acc_t<T>;
  constexpr int kTiles = Shape::kTiles;
  constexpr int kTokens = Shape::kOthers;
  constexpr acc kNothing = -std::numeric_limits<acc>::infinity();
  SUBQUAD_SHARED(memory);
  T* values = reinterpret_cast<T*>(memory); // [kTokens, kColumns]
  const int stride = tile_stride<T>(Shape::kColumns);
  const int lane = lane_index();
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const Head at(params, blockIdx.x / params.heads, blockIdx.x % params.heads);
  const int64_t C = params.slots;
  const Chunk<T> chunk(blockIdx.z % chunks, params.value_dim);
  const int64_t first_slot =
      blockIdx.z / chunks * Shape::kRows + warp * kWarpRows + lane / 4;
  const T* logits = head_of(
      static_cast<const T*>(params.logits),
      params.logits_stride,
      at.tokens.batch,
      at.head);

  // Every row is divided by itself: segments are multiples of a step.
  const int64_t length = at.tokens.span.length;
  const int64_t size =
      ceil_divide(ceil_divide(length, segments), int64_t{kTokens}) * kTokens;
  const int64_t begin = int64_t{blockIdx.y} * size;
  const int64_t end = min_index(begin + size, length);

  acc top[2] = {kNothing, kNothing};
  acc total[2] = {0, 0}; // of the lane's tokens only
  Fragment<acc, Shape::kColumns / 8> output;
  output.zero();
  for (int64_t first = begin; first < end; first += kTokens) {
    __syncthreads();
    stage_values(
        values,
        stride,
        kTokens,
        params,
        at,
        first,
        end,
        chunk.first,
        chunk.columns,
        vectors);
    Fragment<acc, kTiles> weights; // slots x tokens, first the logits
    acc highest[2] = {kNothing, kNothing};
#pragma unroll
    for (int k = 0; k < kTiles; ++k) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int64_t i = first + fragment_column(lane, k, e);
        const T* token = i < end
            ? logits + at.tokens.token(i) * params.logits_stride.row
            : nullptr;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t slot = first_slot + 8 * half;
          const acc logit =
              token != nullptr && slot < C ? to_acc(token[slot]) : kNothing;
          weights.v[k][2 * half + e] = logit;
          highest[half] = larger(highest[half], logit);
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const acc best = larger(top[half], row_max(highest[half]));
      // Without a finite logit so far there is nothing to subtract.
      const acc shift = best == kNothing ? acc(0) : best;
      const acc decay = exponential(top[half] - shift);
      top[half] = best;
      total[half] *= decay;
#pragma unroll
      for (int n = 0; n < Shape::kColumns / 8; ++n) {
        output.v[n][2 * half] *= decay;
        output.v[n][2 * half + 1] *= decay;
      }
#pragma unroll
      for (int k = 0; k < kTiles; ++k) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          weights.v[k][e] = exponential(weights.v[k][e] - shift);
          total[half] += weights.v[k][e];
        }
      }
    }
    cp_async_wait<0>();
    __syncthreads();
    multiply<T, kTiles, Shape::kColumns / 8>(
        output, weights, values, stride, chunk.columns);
  }

  const int64_t parts = params.rows * params.heads * C; // of a segment
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const acc sum = row_sum(total[half]);
    const int64_t slot = first_slot + 8 * half;
    if (slot >= C) {
      continue;
    }
    const int64_t part = blockIdx.y * parts + at.slots(params) + slot;
    if (chunk.first == 0 && lane % 4 == 0) {
      tops[part] = top[half];
      totals[part] = sum;
    }
    acc* target = sums + part * params.value_dim + chunk.first;
#pragma unroll
    for (int n = 0; n < Shape::kColumns / 8; ++n) {
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) {
        const int column = fragment_column(lane, n, e);
        if (column < chunk.columns) {
          target[column] = output.v[n][e];
        }
      }
    }
  }
}

constexpr int kSlotThreads = 128;
constexpr int kSlotWarps = kSlotThreads / kWarpSize;

// Merges the segments in their order. Grid: a warp per slot.
template <typename T>
__global__ void __launch_bounds__(kSlotThreads) sequence_pool_merge_kernel(
    SequencePoolParams params,
    int64_t segments,
    const acc_t<T>* tops,
    const acc_t<T>* totals,
    const acc_t<T>* sums) {
  using acc = acc_t<T>;
  constexpr acc kNothing = -std::numeric_limits<acc>::infinity();
  const int64_t slots = params.rows * params.heads * params.slots;
  const int64_t M = params.value_dim;
  for (int64_t slot =
           int64_t{blockIdx.x} * kSlotWarps + threadIdx.x / kWarpSize;
       slot < slots;
       slot += int64_t{gridDim.x} * kSlotWarps) {
    acc top = kNothing;
    for (int64_t s = 0; s < segments; ++s) {
      top = larger(top, tops[s * slots + slot]);
    }
    const acc shift = top == kNothing ? acc(0) : top;
    acc total = 0;
    for (int64_t s = 0; s < segments; ++s) {
      total += totals[s * slots + slot] *
          exponential(tops[s * slots + slot] - shift);
    }
    const bool empty = total == acc(0);
    const acc inverse = empty ? acc(0) : acc(1) / total;
    if (lane_index() == 0) {
      static_cast<acc*>(params.lse)[slot] =
          empty ? kNothing : top + logarithm(total);
    }
    T* output = static_cast<T*>(params.output) + slot * M;
    for (int64_t m = lane_index(); m < M; m += kWarpSize) {
      acc sum = 0;
      for (int64_t s = 0; s < segments; ++s) {
        const int64_t part = s * slots + slot;
        sum += sums[part * M + m] * exponential(tops[part] - shift);
      }
      output[m] = from_acc<T>(empty ? acc(0) : sum * inverse);
    }
  }
}

inline dim3 slot_grid(const SequencePoolParams& params) {
  return dim3(grid_size(
      ceil_divide(params.rows * params.heads * params.slots, kSlotWarps)));
}

} // namespace subquad::sequence_pool

namespace subquad {

template <typename Launcher>
int launch_sequence_pool_forward(
    const Launcher& launch,
    const SequencePoolParams& params,
    void* memory,
    ScalarKind dtype) {
  using namespace sequence_pool;
  if (params.rows * params.heads * params.slots == 0) {
    return 0;
  }
  return dispatch_scalar(dtype, [&]<typename T>() {
    using Shape = RowShape<T>;
    using acc = acc_t<T>;
    const ForwardWorkspace workspace =
        forward_workspace(params, sizeof(acc), memory);
    auto* tops = static_cast<acc*>(workspace.top);
    auto* totals = static_cast<acc*>(workspace.total);
    auto* sums = static_cast<acc*>(workspace.sums);
    const int64_t segments = segments_of(params);
    const int64_t chunks = Chunk<T>::count(params.value_dim);
    const int error = launch(
        sequence_pool_forward_kernel<T>,
        row_grid(
            params.rows * params.heads,
            segments,
            ceil_divide(params.slots, Shape::kRows) * chunks),
        dim3(Shape::kThreads),
        Shape::kOthers * tile_stride<T>(Shape::kColumns) * sizeof(T),
        params,
        segments,
        chunks,
        takes_vectors<T>(params.value, params.value_stride, params.value_dim),
        tops,
        totals,
        sums);
    return error != 0 ? error
                      : launch(
                            sequence_pool_merge_kernel<T>,
                            slot_grid(params),
                            dim3(kSlotThreads),
                            0,
                            params,
                            segments,
                            tops,
                            totals,
                            sums);
  });
}

} // namespace subquad
