#pragma once

#include "operands.h"
#include "ops/linear_attention/workspace.h"

namespace subquad {

// What every kernel of linear attention reads, and the results of forward.
inline Operands linear_operands(
    const LinearAttentionParams& params,
    ScalarKind dtype,
    bool forward) {
  const int64_t B = params.batch;
  const int64_t Hkv = params.key_heads;
  const int64_t L = params.query_length;
  const int64_t S = params.key_length;
  const int64_t M = params.value_dim;
  const size_t acc_bytes = dtype == ScalarKind::kDouble ? 8 : 4;
  Operands operands(B, params.heads, L, dtype);
  const auto wide =
      [&](const char* name, const void* data, int64_t count, bool read_only) {
        operands.bytes(name, data, count * acc_bytes, read_only);
      };
  const auto tables = [&](int64_t stride) { return stride == 0 ? 1 : B; };
  operands.input("query", params.query, params.query_stride, params.head_dim);
  operands.strided(
      "key", params.key, params.key_stride, B, Hkv, S, params.head_dim, true);
  operands.strided(
      "value", params.value, params.value_stride, B, Hkv, S, M, true);
  wide(
      "query_weight",
      params.query_weight,
      tables(params.query_weight_stride) * L * params.query_rule.copies,
      true);
  wide(
      "key_weight",
      params.key_weight,
      tables(params.key_weight_stride) * S * params.key_rule.copies,
      true);
  wide("key_log_scale", params.key_log_scale, B * Hkv * S, true);
  operands.indices("query_spans", params.query_spans, 2 * params.rows);
  if (params.key_spans != params.query_spans) {
    operands.indices("key_spans", params.key_spans, 2 * params.rows);
  }
  operands.indices("query_order", params.query_order, B * L);
  if (params.key_order != params.query_order) {
    operands.indices("key_order", params.key_order, B * S);
  }
  const int64_t lanes = params.rows * Hkv;
  const int64_t features = lanes * params.features;
  wide("state_kv", params.state_kv, features * M, true);
  wide("state_k", params.state_k, features, true);
  wide("state_log_scale", params.state_log_scale, lanes, true);
  operands.strided(
      "output",
      params.output,
      params.output_stride,
      B,
      params.heads,
      L,
      M,
      !forward);
  operands.lines("denominator", params.denominator, !forward);
  wide("new_state_kv", params.new_state_kv, features * M, !forward);
  wide("new_state_k", params.new_state_k, features, !forward);
  wide("new_state_log_scale", params.new_state_log_scale, lanes, !forward);
  return operands;
}

} // namespace subquad
