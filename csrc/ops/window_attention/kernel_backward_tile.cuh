#pragma once

#include "common/scalar_kind.h"
#include "ops/window_attention/backward_workspace.h"
#include "ops/window_attention/sight.cuh"

// What the kernels of window attention's backward pass share.
//
//   P  = exp(logit - lse)
//   dS = P o (dropout o (dO V^T) - delta),  delta = rowsum(dO o O) - dlse
//   dQ = scale dS K,  dK = scale dS^T Q,  dV = (dropout o P)^T dO
//
// Every gradient has its own kernel, which computes P and dS anew where it
// needs them: a block owns rows of a result and a chunk of its columns and goes
// through what they meet in one order. So there are no atomics, and nothing as
// large as P is stored. Elements of P and dS that are not seen are set to zero,
// never multiplied by it.
namespace subquad::cuda {

// How the work of a kernel is laid out; computed on the host.
struct BackwardLayout {
  int64_t tiles; // of queries, keys or summaries
  int chunks;    // of the result's columns
  // Segments of queries; only for summaries and tables more than one.
  int64_t segments;
  bool summaries;     // of the kernel for keys: it is for summaries now
  bool one_buffer;    // the two operands of a step take turns in one buffer
  bool vectors_query; // which rows are copied 16 bytes at a time
  bool vectors_key;
  bool vectors_value;
  bool vectors_grad_output;
};

// Start of a block's shared memory: about the `rows` queries of its tile, or of
// the tile that its keys meet at the moment.
template <typename scalar_t>
struct TileHeader {
  using acc = acc_t<scalar_t>;

  Sight* sights;
  acc* lse;
  acc* delta;
  Seen* seen;
  int* marks; // rows of the other operand with NaN or infinity
  int* votes; // of the warps

  __device__ TileHeader(unsigned char* shared, int rows)
      : sights(reinterpret_cast<Sight*>(shared)),
        lse(reinterpret_cast<acc*>(sights + rows)),
        delta(lse + rows),
        seen(reinterpret_cast<Seen*>(delta + rows)),
        marks(reinterpret_cast<int*>(seen + rows)),
        votes(marks + rows) {}

  SUBQUAD_HOST_DEVICE static size_t bytes(int rows) {
    const size_t row =
        sizeof(Sight) + 2 * sizeof(acc) + sizeof(Seen) + sizeof(int);
    const size_t bytes =
        static_cast<size_t>(rows) * row + rows / kWarpRows * sizeof(int);
    return (bytes + 15) / 16 * 16;
  }
};

// Whether x holds for all threads; all of a block call it.
template <int kWarps>
__device__ inline bool all_of_block(bool x, int* votes) {
  x = __all_sync(kAllLanes, x) != 0;
  if (lane_index() == 0) {
    votes[threadIdx.x / kWarpSize] = x ? 1 : 0;
  }
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) {
    x = x && votes[warp] != 0;
  }
  __syncthreads();
  return x;
}

template <typename acc, int kTiles>
__device__ __forceinline__ bool all_finite(
    const Fragment<acc, kTiles>& fragment) {
  bool finite = true;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      finite = finite && is_finite(fragment.v[n][e]);
    }
  }
  return finite;
}

// Goes through steps with two operands, a used before b. With a buffer for
// each, one is copied while the other is used; in one buffer they take turns.
// Barriers: before and after each use.
template <
    typename Steps,
    typename StageA,
    typename UseA,
    typename StageB,
    typename UseB>
__device__ __forceinline__ void for_each_step(
    const Steps& steps,
    bool one_buffer,
    StageA stage_a,
    UseA use_a,
    StageB stage_b,
    UseB use_b) {
  const auto wait = [&] {
    if (one_buffer) {
      cp_async_wait<0>();
    } else {
      cp_async_wait<1>();
    }
    __syncthreads();
  };
  auto at = steps.begin();
  if (!steps.done(at)) {
    stage_a(at);
  }
  cp_async_commit();
  if (!one_buffer && !steps.done(at)) {
    stage_b(at);
  }
  cp_async_commit();
  while (!steps.done(at)) {
    const auto next = steps.next(at);
    const bool more = !steps.done(next);
    wait();
    use_a(at);
    __syncthreads();
    if (one_buffer) {
      stage_b(at);
    } else if (more) {
      stage_a(next);
    }
    cp_async_commit();
    wait();
    use_b(at);
    __syncthreads();
    if (more) {
      if (one_buffer) {
        stage_a(next);
      } else {
        stage_b(next);
      }
    }
    cp_async_commit();
    at = next;
  }
  cp_async_wait<0>();
}

// Index of a query in lse and delta.
__device__ __forceinline__ int64_t query_number(
    const WindowAttentionParams& params,
    int64_t batch,
    int64_t head,
    int64_t token) {
  return (batch * params.heads + head) * params.query_length + token;
}

// A query whose logits are all -inf, or that has none, takes no part.
template <typename acc>
__device__ __forceinline__ bool takes_part(acc lse) {
  return lse != acc(-INFINITY);
}

// The vectors of all operands, and the rest of a layout empty.
template <typename scalar_t>
BackwardLayout backward_layout(
    const WindowAttentionParams& params,
    const WindowAttentionGradients& gradients) {
  BackwardLayout layout{};
  layout.segments = 1;
  layout.vectors_query = takes_vectors<scalar_t>(
      params.query, params.query_stride, params.head_dim);
  layout.vectors_key =
      takes_vectors<scalar_t>(params.key, params.key_stride, params.head_dim);
  layout.vectors_value = takes_vectors<scalar_t>(
      params.value, params.value_stride, params.value_dim);
  layout.vectors_grad_output = takes_vectors<scalar_t>(
      gradients.grad_output, gradients.grad_output_stride, params.value_dim);
  if (params.summaries > 0) {
    layout.vectors_key =
        layout.vectors_key &&
        takes_vectors<scalar_t>(
            params.summary_key, params.summary_key_stride, params.head_dim);
    layout.vectors_value = layout.vectors_value &&
        takes_vectors<scalar_t>(
                               params.summary_value,
                               params.summary_value_stride,
                               params.value_dim);
  }
  return layout;
}

template <int kWarpCount, int kColumnCount>
struct TileShape {
  static constexpr int kWarps = kWarpCount;
  static constexpr int kRows = kWarpCount * kWarpRows;
  static constexpr int kColumns = kColumnCount;
};

// Calls f with the largest shape of tile for which `bytes(rows)` of shared
// memory are granted; with the smallest if none is.
template <typename scalar_t, typename Bytes, typename F>
int with_tile_shape(int64_t columns, Bytes bytes, F f) {
  const auto fits = [&](int warps) {
    return bytes(warps * kWarpRows) <= kSharedLimit;
  };
  if constexpr (Scalar<scalar_t>::kTensorCores) {
    if (!fits(4)) {
      return f(TileShape<2, 128>());
    }
    return columns <= 64 ? f(TileShape<4, 64>()) : f(TileShape<4, 128>());
  } else if constexpr (sizeof(scalar_t) == 4) {
    if (!fits(2)) {
      return f(TileShape<1, 64>());
    }
    return fits(4) ? f(TileShape<4, 64>()) : f(TileShape<2, 64>());
  } else {
    return fits(2) ? f(TileShape<2, 32>()) : f(TileShape<1, 32>());
  }
}

// Launches `blocks` blocks of `warps` warps, or nothing for none.
template <typename Launcher, typename Kernel, typename... Args>
int launch_blocks(
    Launcher&& launch,
    Kernel kernel,
    int64_t blocks,
    int warps,
    size_t shared_bytes,
    Args&&... args) {
  if (blocks == 0) {
    return 0;
  }
  if (blocks > kMaxBlocks) {
    return kInvalidConfiguration;
  }
  return launch(
      kernel,
      dim3(static_cast<unsigned>(blocks)),
      dim3(static_cast<unsigned>(warps * kWarpSize)),
      shared_bytes,
      std::forward<Args>(args)...);
}

} // namespace subquad::cuda
