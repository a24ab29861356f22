#pragma once

#include <cstdint>

#include "common/feature_map.h"
#include "common/index.h"
#include "common/strides.h"

// What the CPU and the CUDA kernels of linear attention are told. No tensor
// appears here: sizes, strides in elements and untyped pointers.
namespace subquad {

// How queries or keys become features: map(x) + offset, once per weight,
// each copy times its weight: feature c * F + f is weight[c] * mapped[f], with
// F mapped features.
struct FeatureRule {
  FeatureMap map;
  int64_t degree; // of kDpfp
  double offset;
  int64_t copies; // C, 1 without weights
};

struct LinearAttentionParams {
  int64_t batch;        // B; 1 when rows are packed
  int64_t rows;         // R spans; B unless packed
  int64_t heads;        // H
  int64_t key_heads;    // Hkv, divides H
  int64_t query_length; // L
  int64_t key_length;   // S; equals L when causal
  int64_t head_dim;     // D, of queries and keys before the map
  int64_t features;     // F * C, after it
  int64_t value_dim;    // M
  bool packed;          // every row lies in batch 0

  bool causal; // then queries and keys have the same spans and orders
  // A causal query of rank i sees the keys j <= i when blindspot is 1, else
  // those of complete buckets, j < floor(i / blindspot) * blindspot.
  int64_t blindspot;
  bool normalize;
  double floor; // the least denominator
  double scale; // of the query's features
  FeatureRule query_rule;
  FeatureRule key_rule;

  // [R, 2] (start, length) pairs; null: every row is the whole axis.
  const int64_t* query_spans;
  const int64_t* key_spans;
  // Rows whose tokens lie scattered, as in WindowAttentionParams; null on the
  // CPU.
  const int64_t* query_order;
  const int64_t* key_order;

  const void* query; // [B, H, L, D]
  Strides query_stride;
  const void* key; // [B, Hkv, S, D]
  Strides key_stride;
  const void* value; // [B, Hkv, S, M]
  Strides value_stride;

  // Optional, of the accumulation dtype, dense. A batch stride of 0 means one
  // table for all.
  const void* query_weight; // [1 or B, L, C]
  int64_t query_weight_stride;
  const void* key_weight; // [1 or B, S, C]
  int64_t key_weight_stride;
  // [B, Hkv, S], not decreasing along a row: a key's part in the result of
  // query i is exp(key_log_scale[j] - key_log_scale[i]).
  const void* key_log_scale;

  // The sums over the keys that came before, of the accumulation dtype, dense;
  // null: none. The log scale is null where key_log_scale is.
  const void* state_kv;        // [R, Hkv, F * C, M]
  const void* state_k;         // [R, Hkv, F * C]
  const void* state_log_scale; // [R, Hkv]

  void* output; // [B, H, L, M]
  Strides output_stride;
  void* denominator;         // [B, H, L] dense, accumulation dtype, unclamped
  void* new_state_kv;        // like state_kv
  void* new_state_k;         // like state_k
  void* new_state_log_scale; // like state_log_scale; null without log scales
};

// Backward: output, denominator and the new states of the params are inputs
// here. A null gradient is not wanted (those that are written) or zero (those
// that are read).
struct LinearAttentionGradients {
  const void* grad_output; // [B, H, L, M]
  Strides grad_output_stride;
  const void* grad_new_state_kv; // dense, like the states
  const void* grad_new_state_k;
  const void* grad_new_state_log_scale;

  void* grad_query; // [B, H, L, D]
  Strides grad_query_stride;
  void* grad_key; // [B, Hkv, S, D]
  Strides grad_key_stride;
  void* grad_value; // [B, Hkv, S, M]
  Strides grad_value_stride;
  void* grad_key_log_scale; // [B, Hkv, S], dense
  void* grad_state_kv;      // like the states
  void* grad_state_k;
  void* grad_state_log_scale;
};

// Keys [0, end) of its row that a causal query of rank i sees.
SUBQUAD_HOST_DEVICE inline int64_t
causal_end(int64_t i, int64_t blindspot, int64_t length) {
  const int64_t end = blindspot == 1 ? i + 1 : i / blindspot * blindspot;
  return min_index(end, length);
}

// How many keys of a row of `length` the new state sums: all, or those of
// complete buckets.
SUBQUAD_HOST_DEVICE inline int64_t
state_end(bool causal, int64_t blindspot, int64_t length) {
  return causal ? length / blindspot * blindspot : length;
}

} // namespace subquad
