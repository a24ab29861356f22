#pragma once

#include <cstdint>

#include "common/index.h"
#include "common/strides.h"

// What the CPU and the CUDA kernels of window attention are told. No tensor
// appears here: sizes, strides in elements and untyped pointers.
namespace subquad {

struct WindowAttentionParams {
  int64_t batch;                 // B; 1 when rows are packed
  int64_t rows;                  // R spans; B unless packed
  int64_t heads;                 // H
  int64_t key_heads;             // Hkv, divides H
  int64_t query_length;          // L
  int64_t key_length;            // S
  int64_t head_dim;              // D
  int64_t value_dim;             // M
  int64_t summaries;             // C, 0 without summaries
  int64_t summary_relative_keys; // T, lines of summary_relative_key
  bool packed;                   // every row lies in batch 0

  WindowRule window;
  SummaryRule summary;
  double scale;

  // Position of query i of a row: query_position[batch][i] (i counts the
  // tensor's own axis), or i - row start + query_offset without a table.
  int64_t query_offset;
  const int64_t* query_position;
  int64_t query_position_stride; // per batch entry; 0 when shared

  // [R, 2] (start, length) pairs; null: every row is the whole axis.
  const int64_t* query_spans;
  const int64_t* key_spans;
  const int64_t* summary_lengths; // [R]; null: all C are valid

  // Rows whose tokens lie scattered, [B, L] and [B, S]: spans count ranks, and
  // the token of rank r is order[batch * stride + r], its place on the tensor's
  // axis. Null: rank and token are one. Always null on the CPU, where such rows
  // are compacted before a kernel runs.
  const int64_t* query_order;
  int64_t query_order_stride;
  const int64_t* key_order;
  int64_t key_order_stride;

  double dropout;
  const int64_t* dropout_state; // (seed, offset); null without dropout

  const void* query; // [B, H, L, D]
  Strides query_stride;
  const void* key; // [B, Hkv, S, D]
  Strides key_stride;
  const void* value; // [B, Hkv, S, M]
  Strides value_stride;
  const void* summary_key; // [R, Hkv, C, D]
  Strides summary_key_stride;
  const void* summary_value; // [R, Hkv, C, M]
  Strides summary_value_stride;

  // Optional logit terms, dense, of the query's dtype. A head stride of 0
  // means one table for all heads.
  const void* bias; // [1 or H, block, slots]
  int64_t bias_head_stride;
  const void* key_bias;     // [B, S]
  const void* relative_key; // [1 or H, slots, D]
  int64_t relative_key_head_stride;
  const void* summary_relative_key; // [1 or H, T, D], T >= C
  int64_t summary_relative_key_head_stride;

  void* output; // [B, H, L, M]
  Strides output_stride;
  void* logsumexp; // [B, H, L], dense, of the accumulation dtype
};

// Backward: `output` and `logsumexp` of the params are inputs here. A null
// gradient is not wanted. Every gradient has the dtype of what it belongs to;
// those without strides here are dense.
struct WindowAttentionGradients {
  const void* grad_output; // [B, H, L, M]
  Strides grad_output_stride;
  const void* grad_logsumexp; // [B, H, L] dense, or null

  void* grad_query; // [B, H, L, D]
  Strides grad_query_stride;
  void* grad_key; // [B, Hkv, S, D]
  Strides grad_key_stride;
  void* grad_value; // [B, Hkv, S, M]
  Strides grad_value_stride;
  void* grad_summary_key;          // [R, Hkv, C, D]
  void* grad_summary_value;        // [R, Hkv, C, M]
  void* grad_bias;                 // like bias
  void* grad_key_bias;             // like key_bias
  void* grad_relative_key;         // like relative_key
  void* grad_summary_relative_key; // like summary_relative_key
};

// Token of query `rank`, which counts from the start of the axis, not the row.
SUBQUAD_HOST_DEVICE inline int64_t
query_token(const WindowAttentionParams& params, int64_t batch, int64_t rank) {
  return clamped_token(
      params.query_order,
      params.query_order_stride,
      batch,
      rank,
      params.query_length);
}

SUBQUAD_HOST_DEVICE inline int64_t
key_token(const WindowAttentionParams& params, int64_t batch, int64_t rank) {
  return clamped_token(
      params.key_order,
      params.key_order_stride,
      batch,
      rank,
      params.key_length);
}

SUBQUAD_HOST_DEVICE inline int64_t clamped_summaries(
    const WindowAttentionParams& params,
    int64_t row) {
  return params.summary_lengths == nullptr
      ? params.summaries
      : max_index(min_index(params.summary_lengths[row], params.summaries), 0);
}

// Position of the query of `rank` in its row; a table of positions is indexed
// by its token.
SUBQUAD_HOST_DEVICE inline int64_t query_position(
    const WindowAttentionParams& params,
    int64_t batch,
    int64_t row_start,
    int64_t rank,
    int64_t token) {
  if (params.query_position != nullptr) {
    return params.query_position[batch * params.query_position_stride + token];
  }
  return rank - row_start + params.query_offset;
}

// The same where rank and token are one.
SUBQUAD_HOST_DEVICE inline int64_t query_position(
    const WindowAttentionParams& params,
    int64_t batch,
    int64_t row_start,
    int64_t index) {
  return query_position(params, batch, row_start, index, index);
}

// Number of a weight in the whole call, for dropout. Keys come first, then
// summaries.
SUBQUAD_HOST_DEVICE inline uint64_t weight_index(
    const WindowAttentionParams& params,
    int64_t batch,
    int64_t head,
    int64_t query,
    int64_t column) {
  const int64_t row =
      (batch * params.heads + head) * params.query_length + query;
  return static_cast<uint64_t>(row) *
      static_cast<uint64_t>(params.key_length + params.summaries) +
      static_cast<uint64_t>(column);
}

} // namespace subquad
