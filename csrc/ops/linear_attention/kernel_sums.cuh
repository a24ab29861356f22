#pragma once

#include "ops/linear_attention/kernel_tile.cuh"

// The states: sums of each chunk, and the scans that add them up.
namespace subquad::cuda {

enum class Sums {
  kState,    // phi_k^T V of keys, and the sum of phi_k
  kGradient, // of the state that queries see: phi_q^T dO / denominator
};

// Shared memory of a sums kernel: tables, then features and values.
template <typename scalar_t>
constexpr size_t sums_shared_bytes() {
  return ChunkTables<scalar_t>::bytes() +
      2 * kTileElements<scalar_t> * sizeof(scalar_t);
}

// Grid: places of chunks x key heads x tiles of features x tiles of value
// columns, on one axis, places fastest. Block: kTileWarps; each warp owns 16
// features and goes through the tiles of the chunk, one when causal, and the
// heads of a group in their order. Barriers: around the tables of a tile; for
// each head one when its tiles are there and one before they are overwritten.
template <typename scalar_t, Sums kSums>
__global__ void __launch_bounds__(kTileWarps<scalar_t>* kWarpSize, 4)
    linear_attention_sums_kernel(
        LinearAttentionParams params,
        LinearAttentionGradients gradients,
        LinearAttentionLayout layout) {
  using acc = acc_t<scalar_t>;
  constexpr int kTiles = kSide<scalar_t> / 8;
  constexpr int kStride = kTileStride<scalar_t>;

  int64_t work = static_cast<int64_t>(blockIdx.x);
  const int64_t place = work % layout.places;
  work /= layout.places;
  const int64_t key_head = work % params.key_heads;
  work /= params.key_heads;
  const ColumnTile features =
      column_tile<scalar_t>(work % layout.feature_tiles, params.features);
  const ColumnTile columns =
      column_tile<scalar_t>(work / layout.feature_tiles, params.value_dim);
  const Chunk chunk = chunk_at(layout.axis, place);
  if (chunk.count == 0) {
    return;
  }
  const int64_t batch = chunk.row.batch;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = lane_index();
  const int warp = thread / kWarpSize;

  SUBQUAD_SHARED(shared);
  const ChunkTables<scalar_t> tables(shared);
  scalar_t* left =
      reinterpret_cast<scalar_t*>(shared + ChunkTables<scalar_t>::bytes());
  scalar_t* right = left + kTileElements<scalar_t>;

  if (kSums == Sums::kState && params.key_log_scale != nullptr && thread == 0 &&
      features.first == 0 && columns.first == 0) {
    static_cast<acc*>(
        layout.workspace.units)[place * params.key_heads + key_head] =
        log_scale<acc>(
            params,
            batch,
            key_head,
            token_of(layout.axis, chunk.row, chunk.begin + chunk.count - 1));
  }

  Fragment<acc, kTiles> sum;
  sum.zero();
  acc sum_of_features = 0; // of feature features.first + thread
  const int64_t group =
      kSums == Sums::kState ? 1 : params.heads / params.key_heads;
  for (int first = 0; first < chunk.count; first += kSide<scalar_t>) {
    Chunk tile = chunk;
    tile.begin += first;
    tile.count = chunk.count - first < kSide<scalar_t> ? chunk.count - first
                                                       : kSide<scalar_t>;
    __syncthreads();
    if constexpr (kSums == Sums::kState) {
      fill_key_tables(tables, params, layout, tile, key_head);
    } else {
      fill_query_tables(tables, params, layout, tile, key_head);
    }
    __syncthreads();
    // What the state does not see is not read.
    if (thread < kSide<scalar_t> && tables.past[thread] == acc(0)) {
      tables.tokens[thread] = -1;
    }
    for (int64_t member = 0; member < group; ++member) {
      const int64_t head = key_head * group + member;
      __syncthreads();
      if constexpr (kSums == Sums::kState) {
        fill_softmax_terms<scalar_t>(
            tables.of_key, layout.keys, batch, head, tables.tokens);
      } else {
        fill_softmax_terms<scalar_t>(
            tables.of_query, layout.queries, batch, head, tables.tokens);
        const int64_t token =
            thread < kSide<scalar_t> ? tables.tokens[thread] : -1;
        if (token >= 0) {
          const acc* terms =
              static_cast<const acc*>(layout.workspace.query_terms) +
              2 * ((batch * params.heads + head) * params.query_length + token);
          tables.inverse[thread] =
              tables.past[thread] * static_cast<acc>(params.scale) * terms[0];
          tables.delta[thread] = terms[1];
        }
      }
      __syncthreads();
      if constexpr (kSums == Sums::kState) {
        stage_vectors(
            right,
            params.value,
            params.value_stride,
            layout.vectors_value,
            batch,
            head,
            tables.tokens,
            columns);
        cp_async_commit();
        stage_features(
            left,
            layout.keys,
            batch,
            head,
            tables.tokens,
            tables.of_key,
            params.key_log_scale == nullptr ? nullptr : tables.past,
            features);
      } else {
        stage_vectors(
            right,
            gradients.grad_output,
            gradients.grad_output_stride,
            layout.vectors_grad_output,
            batch,
            head,
            tables.tokens,
            columns);
        cp_async_commit();
        stage_features(
            left,
            layout.queries,
            batch,
            head,
            tables.tokens,
            tables.of_query,
            tables.inverse,
            features);
      }
      cp_async_commit();
      cp_async_wait<0>();
      __syncthreads();
      if (warp * kWarpRows < features.count) {
        multiply_tiles<true>(
            sum,
            left + warp * kWarpRows,
            kStride,
            right,
            kStride,
            kSide<scalar_t>,
            columns.count);
      }
      if (columns.first == 0 && thread < features.count) {
        for (int row = 0; row < kSide<scalar_t>; ++row) {
          if (tables.tokens[row] >= 0) {
            const acc feature = to_acc(left[row * kStride + thread]);
            sum_of_features +=
                kSums == Sums::kState ? feature : feature * tables.delta[row];
          }
        }
      }
    }
  }

  acc* target = static_cast<acc*>(
                    kSums == Sums::kState ? layout.workspace.states
                                          : layout.workspace.state_gradients) +
      (place * params.key_heads + key_head) * state_elements(params);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int feature = warp * kWarpRows + fragment_row(lane, e);
      const int column = fragment_column(lane, n, e);
      if (feature < features.count && column < columns.count) {
        target
            [(features.first + feature) * params.value_dim + columns.first +
             column] = sum.v[n][e];
      }
    }
  }
  if (columns.first == 0 && thread < features.count) {
    target[params.features * params.value_dim + features.first + thread] =
        sum_of_features;
  }
}

constexpr int kScanThreads = 256;
// Loads in flight of a scan.
constexpr int kScanStep = 4;

// Element of a state of the caller, whose parts lie apart; 0 without one.
template <typename acc>
__device__ __forceinline__ acc state_element(
    const void* kv, // [R, Hkv, F, M]
    const void* k,  // [R, Hkv, F]
    const LinearAttentionParams& params,
    int64_t lane, // row and key head
    int64_t i) {
  const int64_t products = params.features * params.value_dim;
  if (i < products) {
    return kv == nullptr ? acc(0)
                         : static_cast<const acc*>(kv)[lane * products + i];
  }
  return k == nullptr
      ? acc(0)
      : static_cast<const acc*>(k)[lane * params.features + i - products];
}
template <typename acc>
__device__ __forceinline__ void store_state_element(
    void* kv,
    void* k,
    const LinearAttentionParams& params,
    int64_t lane,
    int64_t i,
    acc value) {
  const int64_t products = params.features * params.value_dim;
  if (i < products) {
    if (kv != nullptr) {
      static_cast<acc*>(kv)[lane * products + i] = value;
    }
  } else if (k != nullptr) {
    static_cast<acc*>(k)[lane * params.features + i - products] = value;
  }
}

// A state in the units of a later log scale; nothing came before -inf.
template <typename acc>
__device__ __forceinline__ acc
later(const LinearAttentionParams& params, acc value, acc before, acc after) {
  if (params.new_state_log_scale == nullptr) {
    return value;
  }
  return before == acc(-INFINITY) ? acc(0) : value * decay(before, after);
}

// Grid: rows x key heads x pieces of a state, pieces fastest. A thread adds up
// one element over the chunks of the row: from the sums of the chunks, when
// causal, it makes what came before each of them. `store`: the new states are
// written.
template <typename acc>
__global__ void __launch_bounds__(kScanThreads) linear_attention_scan_kernel(
    LinearAttentionParams params,
    LinearAttentionLayout layout,
    bool store) {
  const int64_t size = state_elements(params);
  const int64_t pieces = ceil_divide(size, kScanThreads);
  const int64_t lane = static_cast<int64_t>(blockIdx.x) / pieces;
  const int64_t i = static_cast<int64_t>(blockIdx.x) % pieces * kScanThreads +
      static_cast<int>(threadIdx.x);
  if (i >= size) {
    return;
  }
  const int64_t head = lane % params.key_heads;
  const RowOfTokens row = row_of_tokens(layout.axis, lane / params.key_heads);
  const int64_t step = params.key_heads * size;
  acc* states = static_cast<acc*>(layout.workspace.states) +
      (row.place * params.key_heads + head) * size + i;

  acc state =
      state_element<acc>(params.state_kv, params.state_k, params, lane, i);
  acc unit = unit_before<acc>(params, layout.workspace, row, head, 0);
  if (row.chunks == 0) {
    state = later(params, state, unit, unit);
  }
  for (int64_t first = 0; first < row.chunks; first += kScanStep) {
    acc sums[kScanStep];
#pragma unroll
    for (int k = 0; k < kScanStep; ++k) {
      sums[k] = first + k < row.chunks ? states[(first + k) * step] : acc(0);
    }
#pragma unroll
    for (int k = 0; k < kScanStep; ++k) {
      const int64_t chunk = first + k;
      if (chunk >= row.chunks) {
        break;
      }
      if (params.causal) {
        states[chunk * step] = state;
      }
      const acc next =
          unit_before<acc>(params, layout.workspace, row, head, chunk + 1);
      state = later(params, state, unit, next) + sums[k];
      unit = next;
    }
  }
  if (store) {
    store_state_element(
        params.new_state_kv, params.new_state_k, params, lane, i, state);
    if (i == 0 && params.new_state_log_scale != nullptr) {
      static_cast<acc*>(params.new_state_log_scale)[lane] = unit;
    }
  }
}

// The same backwards. When causal, the sums of the chunks of queries become the
// gradient of the state behind each chunk; queries of a group see the state
// before its first chunk.
template <typename acc>
__global__ void __launch_bounds__(kScanThreads)
    linear_attention_reverse_scan_kernel(
        LinearAttentionParams params,
        LinearAttentionGradients gradients,
        LinearAttentionLayout layout) {
  const int64_t size = state_elements(params);
  const int64_t pieces = ceil_divide(size, kScanThreads);
  const int64_t lane = static_cast<int64_t>(blockIdx.x) / pieces;
  const int64_t i = static_cast<int64_t>(blockIdx.x) % pieces * kScanThreads +
      static_cast<int>(threadIdx.x);
  if (i >= size) {
    return;
  }
  const int64_t head = lane % params.key_heads;
  const RowOfTokens row = row_of_tokens(layout.axis, lane / params.key_heads);
  const int64_t step = params.key_heads * size;
  acc* sums = static_cast<acc*>(layout.workspace.state_gradients) +
      (row.place * params.key_heads + head) * size + i;

  acc gradient = state_element<acc>(
      gradients.grad_new_state_kv, gradients.grad_new_state_k, params, lane, i);
  acc pending = 0; // of the queries of the group so far
  if (row.chunks == 0) {
    const acc unit = unit_before<acc>(params, layout.workspace, row, head, 0);
    gradient = later(params, gradient, unit, unit);
  }
  for (int64_t last = row.chunks - 1; last >= 0; last -= kScanStep) {
    acc loaded[kScanStep];
#pragma unroll
    for (int k = 0; k < kScanStep; ++k) {
      loaded[k] = last >= k ? sums[(last - k) * step] : acc(0);
    }
#pragma unroll
    for (int k = 0; k < kScanStep; ++k) {
      const int64_t chunk = last - k;
      if (chunk < 0) {
        break;
      }
      pending += loaded[k];
      if (params.causal) {
        sums[chunk * step] = gradient;
      }
      if (chunk % layout.axis.rule.per == 0) {
        if (params.key_log_scale != nullptr) {
          gradient = later(
              params,
              gradient,
              unit_before<acc>(params, layout.workspace, row, head, chunk),
              unit_before<acc>(params, layout.workspace, row, head, chunk + 1));
        }
        gradient += pending;
        pending = 0;
      }
    }
  }
  static_cast<acc*>(layout.workspace.total_gradients)[lane * size + i] =
      gradient;
  store_state_element(
      gradients.grad_state_kv,
      gradients.grad_state_k,
      params,
      lane,
      i,
      gradient);
}

template <typename scalar_t, Sums kSums, typename Launcher>
int launch_sums(
    Launcher&& launch,
    const LinearAttentionParams& params,
    const LinearAttentionGradients& gradients,
    const LinearAttentionLayout& layout) {
  return launch_linear_attention(
      launch,
      linear_attention_sums_kernel<scalar_t, kSums>,
      layout.places * params.key_heads * layout.feature_tiles *
          layout.value_tiles,
      kTileWarps<scalar_t>,
      sums_shared_bytes<scalar_t>(),
      params,
      gradients,
      layout);
}

inline int64_t scan_blocks(const LinearAttentionParams& params) {
  return params.rows * params.key_heads *
      ceil_divide(state_elements(params), kScanThreads);
}

// The states of all chunks, and with `store` the new ones; `layout` is of keys.
template <typename scalar_t, typename Launcher>
int launch_states(
    Launcher&& launch,
    const LinearAttentionParams& params,
    const LinearAttentionLayout& layout,
    bool store) {
  const int error = launch_sums<scalar_t, Sums::kState>(
      launch, params, LinearAttentionGradients{}, layout);
  return error != 0 ? error
                    : launch_linear_attention(
                          launch,
                          linear_attention_scan_kernel<acc_t<scalar_t>>,
                          scan_blocks(params),
                          kScanThreads / kWarpSize,
                          size_t{0},
                          params,
                          layout,
                          store);
}

} // namespace subquad::cuda
