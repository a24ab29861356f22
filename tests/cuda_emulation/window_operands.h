#pragma once

#include "common/window_attention.h"
#include "operands.h"

namespace subquad {

// What every kernel of window attention reads but the log-sum-exp.
inline Operands window_operands(
    const WindowAttentionParams& params,
    ScalarKind dtype) {
  const int64_t B = params.batch;
  const int64_t L = params.query_length;
  const int64_t S = params.key_length;
  const int64_t D = params.head_dim;
  const auto tables = [&](int64_t head_stride) {
    return head_stride == 0 ? int64_t{1} : params.heads;
  };
  const int64_t slots = window_slots(params.window);
  Operands operands(B, params.heads, L, dtype);
  operands.input("query", params.query, params.query_stride, D);
  operands.strided(
      "key", params.key, params.key_stride, B, params.key_heads, S, D, true);
  operands.strided(
      "value",
      params.value,
      params.value_stride,
      B,
      params.key_heads,
      S,
      params.value_dim,
      true);
  operands.strided(
      "summary_key",
      params.summary_key,
      params.summary_key_stride,
      params.rows,
      params.key_heads,
      params.summaries,
      D,
      true);
  operands.strided(
      "summary_value",
      params.summary_value,
      params.summary_value_stride,
      params.rows,
      params.key_heads,
      params.summaries,
      params.value_dim,
      true);
  operands.dense(
      "bias",
      params.bias,
      tables(params.bias_head_stride) * params.window.block * slots,
      true);
  operands.dense("key_bias", params.key_bias, B * S, true);
  operands.dense(
      "relative_key",
      params.relative_key,
      tables(params.relative_key_head_stride) * slots * D,
      true);
  operands.dense(
      "summary_relative_key",
      params.summary_relative_key,
      tables(params.summary_relative_key_head_stride) *
          params.summary_relative_keys * D,
      true);
  operands.indices(
      "query_position",
      params.query_position,
      params.query_position_stride == 0 ? L : B * L);
  operands.indices("query_spans", params.query_spans, 2 * params.rows);
  operands.indices("key_spans", params.key_spans, 2 * params.rows);
  operands.indices("query_order", params.query_order, B * L);
  operands.indices("key_order", params.key_order, B * S);
  operands.indices("summary_lengths", params.summary_lengths, params.rows);
  operands.indices("dropout_state", params.dropout_state, 2);
  return operands;
}

} // namespace subquad
