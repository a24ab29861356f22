#pragma once

#include <cstddef>
#include <cstdint>

#include "common/linear_attention.h"
#include "ops/linear_attention/chunks.h"

// The memory between the CUDA kernels of linear attention.
namespace subquad::cuda {

// Tokens, features and value columns of a tile.
SUBQUAD_HOST_DEVICE constexpr int tile_side(size_t scalar_bytes) {
  return scalar_bytes == 8 ? 32 : 64;
}

// Everything is in the accumulation type; null where it is not needed. A state
// is [F, M] and, behind it, [F].
struct LinearAttentionWorkspace {
  void* states; // [places, Hkv, F (M + 1)] of keys: sums of the chunks,
                // then what came before each of them
  void* units;  // [places, Hkv], log scale of a chunk's last token
  void* state_gradients; // [places, Hkv, F (M + 1)] of queries, alike from the
                         // end: of the state behind each chunk
  void* total_gradients; // [R, Hkv, F (M + 1)], of the state before the row
  void* query_terms;     // [B, H, L, 2], see kernel_backward.cuh
  void* query_features;  // [B, H, L, F], gradients
  void* key_features;    // [B, Hkv, S, F], gradients
  void* products;        // [B, H, L], features . gradients
  void* last_terms;      // [R, Hkv], what the last log scale gets beside them

  size_t bytes;
};

// The chunks whose sums a scan adds up, or those that a tile has room for. They
// are the same when causal; else nobody asks for the sum of a single one, and
// fewer sums are less to store.
enum class ChunksOf { kSums, kTiles };

inline int64_t most_tokens(bool causal, ChunksOf chunks, size_t scalar_bytes) {
  constexpr int kTilesOfSum = 4;
  return tile_side(scalar_bytes) *
      (chunks == ChunksOf::kSums && !causal ? kTilesOfSum : 1);
}

inline TokenAxis query_axis(
    const LinearAttentionParams& params,
    ChunksOf chunks,
    size_t scalar_bytes) {
  return {
      params.query_spans,
      params.query_order,
      params.query_length,
      params.rows,
      params.packed,
      // A longer blindspot than the row is like any other.
      chunk_rule(
          params.causal,
          min_index(params.blindspot, params.query_length + 1),
          most_tokens(params.causal, chunks, scalar_bytes))};
}

inline TokenAxis key_axis(
    const LinearAttentionParams& params,
    ChunksOf chunks,
    size_t scalar_bytes) {
  TokenAxis axis = query_axis(params, chunks, scalar_bytes);
  if (!params.causal) {
    axis.spans = params.key_spans;
    axis.order = params.key_order;
    axis.tokens = params.key_length;
  }
  return axis;
}

SUBQUAD_HOST_DEVICE inline int64_t state_elements(
    const LinearAttentionParams& params) {
  return params.features * (params.value_dim + 1);
}

// Without gradients: of a forward pass. Without memory only `bytes` means
// something.
inline LinearAttentionWorkspace linear_attention_workspace(
    const LinearAttentionParams& params,
    const LinearAttentionGradients* gradients,
    size_t scalar_bytes,
    void* memory) {
  LinearAttentionWorkspace workspace{};
  const size_t acc_bytes = scalar_bytes == 8 ? 8 : 4;
  const auto take = [&](int64_t count) -> void* {
    void* part = memory == nullptr
        ? nullptr
        : static_cast<unsigned char*>(memory) + workspace.bytes;
    workspace.bytes += (static_cast<size_t>(count) * acc_bytes + 15) / 16 * 16;
    return part;
  };
  const int64_t lanes = params.key_heads;
  const int64_t state = state_elements(params);
  const int64_t keys =
      count_places(key_axis(params, ChunksOf::kSums, scalar_bytes)) * lanes;
  const int64_t queries =
      count_places(query_axis(params, ChunksOf::kSums, scalar_bytes)) * lanes;
  if (gradients == nullptr || params.causal) {
    workspace.states = take(keys * state);
    workspace.units = take(keys);
  }
  if (gradients == nullptr) {
    return workspace;
  }
  workspace.state_gradients = take(queries * state);
  workspace.total_gradients = take(params.rows * lanes * state);
  const int64_t query_rows = params.batch * params.heads * params.query_length;
  workspace.query_terms = take(query_rows * 2);
  if (gradients->grad_query != nullptr ||
      gradients->grad_key_log_scale != nullptr) {
    workspace.query_features = take(query_rows * params.features);
  }
  if (gradients->grad_key != nullptr ||
      gradients->grad_key_log_scale != nullptr) {
    workspace.key_features =
        take(params.batch * lanes * params.key_length * params.features);
  }
  if (gradients->grad_key_log_scale != nullptr) {
    workspace.products = take(query_rows);
    workspace.last_terms = take(params.rows * lanes);
  }
  return workspace;
}

} // namespace subquad::cuda
