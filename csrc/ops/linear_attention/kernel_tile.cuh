#pragma once

#include <utility>

#include "common/linear_attention.h"
#include "common/scalar_kind.h"
#include "cuda/feature_map.cuh"
#include "cuda/grid.h"
#include "ops/linear_attention/workspace.h"

// What the kernels of linear attention share. Every tile has kSide rows and
// columns: tokens of a chunk, features, or columns of the values; more features
// and columns are gone through, or divided among blocks, a tile at a time.
namespace subquad::cuda {

template <typename scalar_t>
inline constexpr int kSide = tile_side(sizeof(scalar_t));
template <typename scalar_t>
inline constexpr int kTileWarps = kSide<scalar_t> / kWarpRows;
template <typename scalar_t>
inline constexpr int kTileStride =
    kSide<scalar_t> + 16 / static_cast<int>(sizeof(scalar_t));
template <typename scalar_t>
inline constexpr int kTileElements = kSide<scalar_t> * kTileStride<scalar_t>;

// Warps of the kernels that go through tokens one by one.
constexpr int kRowWarps = 4;

// One column tile of `count` features or value columns.
struct ColumnTile {
  int first;
  int count;
};

template <typename scalar_t>
SUBQUAD_HOST_DEVICE inline ColumnTile column_tile(int64_t tile, int64_t width) {
  const int first = static_cast<int>(tile) * kSide<scalar_t>;
  return {first, static_cast<int>(min_index(width - first, kSide<scalar_t>))};
}

// What the kernels are told beside the parameters; computed on the host.
struct LinearAttentionLayout {
  TokenAxis axis; // of the tokens that the grid divides
  int64_t places; // of chunks on it
  FeatureSource queries;
  FeatureSource keys;
  bool vectors_value; // which rows are copied 16 bytes at a time
  bool vectors_grad_output;
  int feature_tiles;
  int value_tiles;
  LinearAttentionWorkspace workspace;
};

// About the tokens of a chunk.
template <typename scalar_t>
struct ChunkTables {
  using acc = acc_t<scalar_t>;
  static constexpr int kRows = kSide<scalar_t>;

  int64_t* tokens;             // on the tensors' axis; -1: there is none
  SoftmaxTerms<acc>* of_query; // only for a softmax
  SoftmaxTerms<acc>* of_key;
  acc* levels;    // log scales
  acc* past;      // weight of the state; 0: it is not seen
  acc* inverse;   // one over a query's denominator
  acc* delta;     // see kernel_backward.cuh
  acc* votes;     // [kTileWarps]
  int* limits;    // keys of the chunk that a query sees
  int* marks;     // [kTileWarps], a bit for a row with NaN
  scalar_t* line; // such a row

  __device__ explicit ChunkTables(unsigned char* shared)
      : tokens(reinterpret_cast<int64_t*>(shared)),
        of_query(reinterpret_cast<SoftmaxTerms<acc>*>(tokens + kRows)),
        of_key(of_query + kRows),
        levels(reinterpret_cast<acc*>(of_key + kRows)),
        past(levels + kRows),
        inverse(past + kRows),
        delta(inverse + kRows),
        votes(delta + kRows),
        limits(reinterpret_cast<int*>(votes + kTileWarps<scalar_t>)),
        marks(limits + kRows),
        line(reinterpret_cast<scalar_t*>(marks + kTileWarps<scalar_t>)) {}

  SUBQUAD_HOST_DEVICE static constexpr size_t bytes() {
    const size_t row = sizeof(int64_t) + 2 * sizeof(SoftmaxTerms<acc>) +
        4 * sizeof(acc) + sizeof(int) + sizeof(scalar_t);
    const size_t bytes =
        kRows * row + kTileWarps<scalar_t> * (sizeof(acc) + sizeof(int));
    return (bytes + 15) / 16 * 16;
  }
};

// Row of a [B, heads, N, width] tensor.
template <typename scalar_t>
__device__ __forceinline__ const scalar_t* vector_row(
    const void* data,
    const Strides& stride,
    int64_t batch,
    int64_t head,
    int64_t token) {
  return static_cast<const scalar_t*>(data) + batch * stride.batch +
      head * stride.head + token * stride.row;
}

// Columns of a tensor's rows into a tile, asynchronously where that goes.
template <typename scalar_t>
__device__ __forceinline__ void stage_vectors(
    scalar_t* tile,
    const void* data,
    const Strides& stride,
    bool vectors,
    int64_t batch,
    int64_t head,
    const int64_t* tokens,
    const ColumnTile& columns) {
  stage_rows(
      tile,
      kTileStride<scalar_t>,
      kSide<scalar_t>,
      columns.count,
      vectors,
      data,
      [&](int row) -> const scalar_t* {
        return tokens[row] < 0
            ? nullptr
            : vector_row<scalar_t>(data, stride, batch, head, tokens[row]) +
                columns.first;
      });
}

// Features of the chunk's tokens into a tile, times `factors` of the tokens if
// there are any; factors of zero let nothing through.
template <typename scalar_t>
__device__ __forceinline__ void stage_features(
    scalar_t* tile,
    const FeatureSource& source,
    int64_t batch,
    int64_t head,
    const int64_t* tokens,
    const SoftmaxTerms<acc_t<scalar_t>>* softmax,
    const acc_t<scalar_t>* factors,
    const ColumnTile& columns) {
  using acc = acc_t<scalar_t>;
  constexpr int kRows = kSide<scalar_t>;
  if (source.plain && factors == nullptr) {
    stage_vectors(
        tile,
        source.data,
        source.stride,
        source.vectors,
        batch,
        head,
        tokens,
        columns);
    return;
  }
  const int padded = padded_width(columns.count);
  const auto lets_through = [&](int row) {
    return tokens[row] >= 0 && (factors == nullptr || factors[row] != acc(0));
  };
  if (source.vectors && source.rule.map != FeatureMap::kDpfp) {
    // A vector lies in one copy, since their width is a multiple of it.
    constexpr int kVector = kVectorWidth<scalar_t>;
    constexpr int kPieces = kRows / kVector;
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kPieces;
         i += static_cast<int>(blockDim.x)) {
      const int row = i / kPieces;
      const int column = i % kPieces * kVector;
      if (column >= padded) {
        continue;
      }
      acc values[kVector] = {};
      if (column < columns.count && lets_through(row)) {
        const int64_t token = tokens[row];
        const int f = columns.first + column;
        const int copy = f / source.mapped;
        load(
            token_row<scalar_t>(source, batch, head, token) + f -
                copy * source.mapped,
            values);
        const acc* weights = token_weights<acc>(source, batch, token);
        const acc weight = weights == nullptr ? acc(1) : weights[copy];
        const acc factor = factors == nullptr ? acc(1) : factors[row];
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
          values[k] =
              mapped_element(source.rule, softmax[row], values[k]) * weight;
          values[k] *= factor;
        }
      }
      store(values, tile + row * kTileStride<scalar_t> + column);
    }
    return;
  }
#pragma unroll 2
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kRows;
       i += static_cast<int>(blockDim.x)) {
    const int row = i / kRows;
    const int column = i % kRows;
    if (column >= padded) {
      continue;
    }
    acc value = 0;
    if (column < columns.count && lets_through(row)) {
      const int64_t token = tokens[row];
      value = token_feature(
          source,
          token_row<scalar_t>(source, batch, head, token),
          token_weights<acc>(source, batch, token),
          softmax[row],
          columns.first + column);
      if (factors != nullptr) {
        value *= factors[row];
      }
    }
    tile[row * kTileStride<scalar_t> + column] = from_acc<scalar_t>(value);
  }
}

// What stage_features wants to know of the tokens, before it: a barrier apart.
template <typename scalar_t>
__device__ __forceinline__ void fill_softmax_terms(
    SoftmaxTerms<acc_t<scalar_t>>* terms,
    const FeatureSource& source,
    int64_t batch,
    int64_t head,
    const int64_t* tokens) {
  using acc = acc_t<scalar_t>;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
#pragma unroll 1
  for (int row = warp; row < kSide<scalar_t>; row += kTileWarps<scalar_t>) {
    SoftmaxTerms<acc> found{0, 0};
    if (source.rule.map == FeatureMap::kSoftmax && tokens[row] >= 0) {
      found = softmax_terms(
          token_row<scalar_t>(source, batch, head, tokens[row]), source.width);
    }
    if (lane_index() == 0) {
      terms[row] = found;
    }
  }
}

// Log scale of a key; 0 without.
template <typename acc>
__device__ __forceinline__ acc log_scale(
    const LinearAttentionParams& params,
    int64_t batch,
    int64_t head, // of the keys
    int64_t token) {
  return params.key_log_scale == nullptr
      ? acc(0)
      : static_cast<const acc*>(params.key_log_scale)
            [(batch * params.key_heads + head) * params.key_length + token];
}

// Log scale that the state before a chunk is measured in.
template <typename acc>
__device__ __forceinline__ acc unit_before(
    const LinearAttentionParams& params,
    const LinearAttentionWorkspace& workspace,
    const RowOfTokens& row,
    int64_t head, // of the keys
    int64_t chunk) {
  // Not by key_log_scale, which is null without tokens.
  if (params.new_state_log_scale == nullptr) {
    return acc(0);
  }
  if (chunk > 0) {
    return static_cast<const acc*>(
        workspace.units)[(row.place + chunk - 1) * params.key_heads + head];
  }
  return params.state_log_scale == nullptr
      ? acc(-INFINITY)
      : static_cast<const acc*>(
            params.state_log_scale)[row.row * params.key_heads + head];
}

// The tables of a chunk but for `past`; all threads of the block.
template <typename scalar_t>
__device__ __forceinline__ void fill_token_tables(
    const ChunkTables<scalar_t>& tables,
    const LinearAttentionParams& params,
    const LinearAttentionLayout& layout,
    const Chunk& chunk,
    int64_t key_head) {
  using acc = acc_t<scalar_t>;
  const int row = static_cast<int>(threadIdx.x);
  if (row >= kSide<scalar_t>) {
    return;
  }
  int64_t token = -1;
  int limit = 0;
  acc level = 0;
  if (row < chunk.count) {
    const int64_t rank = chunk.begin + row;
    token = token_of(layout.axis, chunk.row, rank);
    level = log_scale<acc>(params, chunk.row.batch, key_head, token);
    if (params.causal) {
      const int64_t end =
          causal_end(rank, params.blindspot, chunk.row.span.length);
      limit = static_cast<int>(
          min_index(max_index(end - chunk.begin, 0), chunk.count));
    }
  }
  tables.tokens[row] = token;
  tables.limits[row] = limit;
  tables.levels[row] = level;
}

// And the weight of the state before the group for its queries.
template <typename scalar_t>
__device__ __forceinline__ void fill_query_tables(
    const ChunkTables<scalar_t>& tables,
    const LinearAttentionParams& params,
    const LinearAttentionLayout& layout,
    const Chunk& chunk,
    int64_t key_head) {
  using acc = acc_t<scalar_t>;
  fill_token_tables(tables, params, layout, chunk, key_head);
  const int row = static_cast<int>(threadIdx.x);
  if (row < kSide<scalar_t>) {
    acc past = row < chunk.count ? 1 : 0;
    if (row < chunk.count && params.key_log_scale != nullptr) {
      const acc unit = unit_before<acc>(
          params, layout.workspace, chunk.row, key_head, chunk.index);
      past = decay(unit, tables.levels[row]);
    }
    tables.past[row] = past;
  }
}

// Or of the state after the chunk for its keys: zero where an incomplete bucket
// does not reach it.
template <typename scalar_t>
__device__ __forceinline__ void fill_key_tables(
    const ChunkTables<scalar_t>& tables,
    const LinearAttentionParams& params,
    const LinearAttentionLayout& layout,
    const Chunk& chunk,
    int64_t key_head) {
  using acc = acc_t<scalar_t>;
  fill_token_tables(tables, params, layout, chunk, key_head);
  const int row = static_cast<int>(threadIdx.x);
  if (row < kSide<scalar_t>) {
    const int64_t end =
        state_end(params.causal, params.blindspot, chunk.row.span.length);
    const bool reaches = row < chunk.count && chunk.begin + row < end;
    acc past = reaches ? 1 : 0;
    if (reaches && params.key_log_scale != nullptr) {
      const int64_t last =
          token_of(layout.axis, chunk.row, chunk.begin + chunk.count - 1);
      past = decay(
          tables.levels[row],
          log_scale<acc>(params, chunk.row.batch, key_head, last));
    }
    tables.past[row] = past;
  }
}

// Launches `blocks` blocks of `warps` warps, or nothing for none.
template <typename Launcher, typename Kernel, typename... Args>
int launch_linear_attention(
    Launcher&& launch,
    Kernel kernel,
    int64_t blocks,
    int warps,
    size_t shared_bytes,
    Args&&... args) {
  if (blocks == 0) {
    return 0;
  }
  return launch(
      kernel,
      dim3(exact_grid_size(blocks)),
      dim3(static_cast<unsigned>(warps * kWarpSize)),
      shared_bytes,
      std::forward<Args>(args)...);
}

// Layout of the kernels that go through `axis`.
template <typename scalar_t>
LinearAttentionLayout linear_attention_layout(
    const LinearAttentionParams& params,
    const LinearAttentionGradients& gradients,
    const LinearAttentionWorkspace& workspace,
    const TokenAxis& axis) {
  LinearAttentionLayout layout{};
  layout.axis = axis;
  layout.places = count_places(layout.axis);
  layout.queries = feature_source<scalar_t>(
      params.query,
      params.query_stride,
      params.query_weight,
      params.query_weight_stride,
      params.query_rule,
      params.head_dim);
  layout.keys = feature_source<scalar_t>(
      params.key,
      params.key_stride,
      params.key_weight,
      params.key_weight_stride,
      params.key_rule,
      params.head_dim);
  layout.vectors_value = takes_vectors<scalar_t>(
      params.value, params.value_stride, params.value_dim);
  layout.vectors_grad_output = takes_vectors<scalar_t>(
      gradients.grad_output, gradients.grad_output_stride, params.value_dim);
  layout.feature_tiles = static_cast<int>(
      ceil_divide(max_index(params.features, 1), kSide<scalar_t>));
  layout.value_tiles = static_cast<int>(
      ceil_divide(max_index(params.value_dim, 1), kSide<scalar_t>));
  layout.workspace = workspace;
  return layout;
}

} // namespace subquad::cuda
