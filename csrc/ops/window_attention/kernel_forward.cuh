#pragma once

#include "common/scalar_kind.h"
#include "ops/window_attention/sight.cuh"

// Forward of window attention: one block works on a tile of queries of one head
// and on `kColumns` columns of the output. It goes through the tiles of keys
// (and of summaries) that one of its queries sees with a running softmax.
namespace subquad::cuda {

// How the work of a pass is laid out; computed on the host.
struct TileLayout {
  int64_t tiles;  // of queries
  int chunks;     // of output columns
  int stages;     // tiles of keys in flight: 1 or 2
  bool vectors_q; // which rows are copied 16 bytes at a time
  bool vectors_k;
  bool vectors_v;
};

// Shared memory of the forward kernel, in this order: sights of the queries,
// marks of the value rows, votes of the warps, queries, then for each stage
// keys and values.
template <typename scalar_t, int kWarps, int kColumns>
struct ForwardShared {
  static constexpr int kRows = kWarps * kWarpRows;

  SUBQUAD_HOST_DEVICE static size_t header() {
    const size_t bytes = kRows * (sizeof(Sight) + sizeof(int)) +
        static_cast<size_t>(kWarps) * sizeof(int);
    return (bytes + 15) / 16 * 16;
  }
  SUBQUAD_HOST_DEVICE static int query_elements(int64_t head_dim) {
    return kRows * tile_stride<scalar_t>(head_dim);
  }
  SUBQUAD_HOST_DEVICE static int value_elements() {
    return kRows * tile_stride<scalar_t>(kColumns);
  }
  SUBQUAD_HOST_DEVICE static int stage_elements(int64_t head_dim) {
    return query_elements(head_dim) + value_elements();
  }
  static size_t bytes(int64_t head_dim, int stages) {
    return header() +
        sizeof(scalar_t) *
        static_cast<size_t>(
            query_elements(head_dim) + stages * stage_elements(head_dim));
  }
};

// Grid: batch x heads x chunks of output columns x tiles of queries, on one
// axis, tiles fastest. Block: kWarps warps; each owns 16 queries. Shared:
// ForwardShared. Barriers: after the sights; per tile one when its copy is
// complete and one before its buffer is overwritten.
template <typename scalar_t, int kWarps, int kColumns>
__global__ void __launch_bounds__(
    kWarps* kWarpSize,
    kWarps == 4 ? 2 : 1) // a third block of an SM would spill on sm_90
    window_attention_forward_kernel(
        WindowAttentionParams params,
        TileLayout layout) {
  using acc = acc_t<scalar_t>;
  using Shared = ForwardShared<scalar_t, kWarps, kColumns>;
  constexpr int kRows = Shared::kRows; // queries of the tile, keys of a step
  constexpr int kTiles = kRows / 8;
  const acc kNothing = -INFINITY;

  const int64_t work = static_cast<int64_t>(blockIdx.x);
  const int64_t tile = work % layout.tiles;
  const int64_t chunk = work / layout.tiles % layout.chunks;
  const int64_t head = work / layout.tiles / layout.chunks % params.heads;
  const int64_t batch = work / layout.tiles / layout.chunks / params.heads;
  const Heads heads{batch, head, head / (params.heads / params.key_heads)};
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = lane_index();
  const int warp = thread / kWarpSize;

  SUBQUAD_SHARED(shared);
  Sight* sights = reinterpret_cast<Sight*>(shared);    // [kRows]
  int* marks = reinterpret_cast<int*>(sights + kRows); // [kRows]
  int* votes = marks + kRows;                          // [kWarps]
  scalar_t* queries = reinterpret_cast<scalar_t*>(shared + Shared::header());
  scalar_t* stages = queries + Shared::query_elements(params.head_dim);
  const int depth = static_cast<int>(params.head_dim);
  const int key_stride = tile_stride<scalar_t>(depth);
  constexpr int kValueStride =
      kColumns + 16 / static_cast<int>(sizeof(scalar_t));
  const int first_column = static_cast<int>(chunk) * kColumns;
  const int columns =
      static_cast<int>(min_index(params.value_dim - first_column, kColumns));

  if (thread < kRows) {
    sights[thread] = sight_of(params, batch, tile * kRows + thread);
  }
  __syncthreads();

  const auto stage_queries = [&] {
    stage_rows(
        queries,
        key_stride,
        kRows,
        depth,
        layout.vectors_q,
        params.query,
        [&](int row) {
          return sights[row].token < 0 ? nullptr
                                       : row_pointer<scalar_t>(
                                             params.query,
                                             params.query_stride,
                                             batch,
                                             head,
                                             sights[row].token);
        });
  };
  const auto keys_of = [&](int stage) {
    return stages + stage * Shared::stage_elements(depth);
  };
  const auto values_of = [&](int stage) {
    return keys_of(stage) + Shared::query_elements(depth);
  };
  const auto stage_columns = [&](int stage, const Columns& at) {
    stage_rows(
        keys_of(stage),
        key_stride,
        kRows,
        depth,
        layout.vectors_k,
        params.query,
        [&](int row) { return key_row<scalar_t>(params, heads, at, row); });
    stage_rows(
        values_of(stage),
        kValueStride,
        kRows,
        columns,
        layout.vectors_v,
        params.query,
        [&](int row) {
          const scalar_t* value = value_row<scalar_t>(params, heads, at, row);
          return value == nullptr ? value : value + first_column;
        });
  };

  const TileSight<kRows> sight(params, sights, kRows);
  const WeightDropout dropout(params);
  const bool bare = has_bare_logits(params);
  const int own[2] = {
      warp * kWarpRows + fragment_row(lane, 0),
      warp * kWarpRows + fragment_row(lane, 2)}; // the lane's two queries

  Fragment<acc, kColumns / 8> output;
  acc top[2];   // largest logit so far
  acc total[2]; // sum of exp(logit - top); of the lane's columns only
  stage_queries();
  // Columns that the values lack stay zero: products go through them.
  const int padded = padded_width(columns);
  const int missing = kColumns - padded;
  for (int i = thread; i < layout.stages * kRows * missing;
       i += kWarps * kWarpSize) {
    const int row = i / missing;
    values_of(row / kRows)[row % kRows * kValueStride + padded + i % missing] =
        from_acc<scalar_t>(acc(0));
  }

  // The second pass happens only where the first gave NaN or infinity: then a
  // row of values may hold some that not every query of the tile sees, and
  // such rows are taken out of the products.
  for (int pass = 0; pass < 2; ++pass) {
    output.zero();
    top[0] = top[1] = kNothing;
    total[0] = total[1] = 0;
    Columns at = sight.begin();
    if (!sight.done(at)) {
      stage_columns(0, at);
    }
    cp_async_commit();
    for (int step = 0; !sight.done(at); ++step) {
      const int stage = layout.stages == 2 ? step % 2 : 0;
      const Columns next = sight.next(at);
      if (layout.stages == 2) {
        if (!sight.done(next)) {
          stage_columns(1 - stage, next);
        }
        cp_async_commit();
        cp_async_wait<1>();
      } else {
        cp_async_wait<0>();
      }
      __syncthreads();
      if (pass > 0) {
        clear_nonfinite_rows(
            values_of(stage), kValueStride, kRows, columns, marks);
        __syncthreads();
      }

      Fragment<acc, kTiles> weights; // first the products, then the logits
      weights.zero();
      multiply_transposed<scalar_t, kTiles>(
          weights,
          queries + warp * kWarpRows * key_stride,
          key_stride,
          keys_of(stage),
          key_stride,
          padded_width(depth));

      const Seen seen[2] = {
          seen_columns(sights[own[0]], at, kRows),
          seen_columns(sights[own[1]], at, kRows)};
      if (!bare) {
        for_each_tile(weights, [&](int n, acc(&v)[4]) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int column = fragment_column(lane, n, e);
            if (seen[e / 2].holds(column)) {
              v[e] = logit(
                  params,
                  heads,
                  sights[own[e / 2]],
                  at,
                  column,
                  queries + own[e / 2] * key_stride,
                  v[e]);
            }
          }
        });
      }
      const acc scale = bare ? static_cast<acc>(params.scale) : acc(1);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        acc highest = kNothing;
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            acc& weight = weights.v[n][e];
            weight = seen[half].holds(fragment_column(lane, n, e))
                ? weight * scale
                : kNothing;
            highest = larger(highest, weight);
          }
        }
        highest = larger(top[half], row_max(highest));
        // Without a column so far there is nothing to subtract.
        const acc shift = highest == kNothing ? acc(0) : highest;
        const acc decay = exponential(top[half] - shift);
        top[half] = highest;
        total[half] *= decay;
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n) {
          output.v[n][2 * half] *= decay;
          output.v[n][2 * half + 1] *= decay;
        }
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            acc& weight = weights.v[n][e];
            weight = exponential(weight - shift);
            total[half] += weight;
          }
        }
      }
      if (params.dropout_state != nullptr) {
        for_each_tile(weights, [&](int n, acc(&v)[4]) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            v[e] *= dropout.factor<acc>(
                params,
                heads,
                tile * kRows + own[e / 2],
                at,
                fragment_column(lane, n, e));
          }
        });
      }

      multiply<scalar_t, kTiles, kColumns / 8>(
          output, weights, values_of(stage), kValueStride);
      if (pass > 0) {
        for (int row = 0; row < kRows; ++row) {
          if (marks[row] != 0) {
            const bool sees[2] = {seen[0].holds(row), seen[1].holds(row)};
            multiply_row<scalar_t, kTiles, kColumns / 8>(
                output,
                weights,
                row,
                value_row<scalar_t>(params, heads, at, row) + first_column,
                columns,
                sees);
          }
        }
      }
      __syncthreads();
      if (layout.stages == 1) {
        if (!sight.done(next)) {
          stage_columns(0, next);
        }
        cp_async_commit();
      }
      at = next;
    }
    cp_async_wait<0>();
    if (pass > 0) {
      break;
    }
    bool finite = true;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        finite = finite && is_finite(output.v[n][e]);
      }
    }
    finite = __all_sync(kAllLanes, finite);
    if (lane == 0) {
      votes[warp] = finite ? 1 : 0;
    }
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) {
      finite = finite && votes[w] != 0;
    }
    if (finite) {
      break;
    }
    __syncthreads();
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const acc sum = row_sum(total[half]);
    const int64_t token = sights[own[half]].token;
    if (token < 0) {
      continue;
    }
    const bool empty = sum == acc(0);
    const acc inverse = empty ? acc(0) : acc(1) / sum;
    scalar_t* target = static_cast<scalar_t*>(params.output) +
        batch * params.output_stride.batch + head * params.output_stride.head +
        token * params.output_stride.row + first_column;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) {
        const int column = fragment_column(lane, n, e);
        if (column < columns) {
          target[column] =
              from_acc<scalar_t>(empty ? acc(0) : output.v[n][e] * inverse);
        }
      }
    }
    if (chunk == 0 && lane % 4 == 0) {
      static_cast<acc*>(params.logsumexp)
          [(batch * params.heads + head) * params.query_length + token] =
              empty ? kNothing : top[half] + logarithm(sum);
    }
  }
}

template <typename scalar_t>
TileLayout
tile_layout(const WindowAttentionParams& params, int rows, int columns) {
  TileLayout layout{};
  layout.tiles = ceil_divide(params.query_length, rows);
  layout.chunks =
      static_cast<int>(ceil_divide(max_index(params.value_dim, 1), columns));
  layout.vectors_q = takes_vectors<scalar_t>(
      params.query, params.query_stride, params.head_dim);
  layout.vectors_k =
      takes_vectors<scalar_t>(params.key, params.key_stride, params.head_dim);
  layout.vectors_v = takes_vectors<scalar_t>(
      params.value, params.value_stride, params.value_dim);
  if (params.summaries > 0) {
    layout.vectors_k =
        layout.vectors_k &&
        takes_vectors<scalar_t>(
            params.summary_key, params.summary_key_stride, params.head_dim);
    layout.vectors_v = layout.vectors_v &&
        takes_vectors<scalar_t>(
                           params.summary_value,
                           params.summary_value_stride,
                           params.value_dim);
  }
  return layout;
}

template <typename scalar_t, int kWarps, int kColumns, typename Launcher>
int launch_forward_tiles(
    Launcher&& launch,
    const WindowAttentionParams& params) {
  using Shared = ForwardShared<scalar_t, kWarps, kColumns>;
  TileLayout layout = tile_layout<scalar_t>(params, Shared::kRows, kColumns);
  layout.stages = Shared::bytes(params.head_dim, 2) <= kSharedLimit ? 2 : 1;
  const int64_t blocks =
      layout.tiles * layout.chunks * params.heads * params.batch;
  if (blocks == 0) {
    return 0;
  }
  if (blocks > kMaxBlocks) {
    return kInvalidConfiguration;
  }
  return launch(
      window_attention_forward_kernel<scalar_t, kWarps, kColumns>,
      dim3(static_cast<unsigned>(blocks)),
      dim3(kWarps * kWarpSize),
      Shared::bytes(params.head_dim, layout.stages),
      params,
      layout);
}

// The largest tile that fits into shared memory and registers.
template <typename scalar_t, typename Launcher>
int launch_forward(Launcher&& launch, const WindowAttentionParams& params) {
  if constexpr (Scalar<scalar_t>::kTensorCores) {
    return params.value_dim <= 64
        ? launch_forward_tiles<scalar_t, 4, 64>(launch, params)
        : launch_forward_tiles<scalar_t, 4, 128>(launch, params);
  } else {
    constexpr int kWarps = sizeof(scalar_t) == 4 ? 4 : 2;
    constexpr int kColumns = sizeof(scalar_t) == 4 ? 64 : 32;
    using Large = ForwardShared<scalar_t, kWarps, kColumns>;
    return Large::bytes(params.head_dim, 1) <= kSharedLimit
        ? launch_forward_tiles<scalar_t, kWarps, kColumns>(launch, params)
        : launch_forward_tiles<scalar_t, kWarps / 2, kColumns>(launch, params);
  }
}

// D <= 256, which the glue checks.
template <typename Launcher>
int dispatch_window_attention_forward(
    Launcher&& launch,
    const WindowAttentionParams& params,
    ScalarKind kind) {
  switch (kind) {
    case ScalarKind::kDouble:
      return launch_forward<double>(launch, params);
    case ScalarKind::kFloat:
      return launch_forward<float>(launch, params);
    case ScalarKind::kBFloat16:
      return launch_forward<__nv_bfloat16>(launch, params);
    case ScalarKind::kHalf:
      return launch_forward<__half>(launch, params);
  }
  return kInvalidConfiguration;
}

} // namespace subquad::cuda
