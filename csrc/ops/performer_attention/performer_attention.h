#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "ops/calls.h"

namespace subquad {

// Performer (Choromanski et al. 2021, arXiv:2009.14794, eq. 4 and lemma 1):
// linear attention between random features of queries and keys,
//
//   output_i = phi_q(q_i) S_i / max(phi_q(q_i) . z_i, floor)
//   S_i = sum_j phi_k(k_j) v_j^T,  z_i = sum_j phi_k(k_j)
//
// over the keys of the row, or, when causal, those up to i. The features are
// those of random_features; for the kinds with an exponential,
//
//   phi(x) = R^-1/2 exp(p - n - m) + eps,
//
// m is the token's own maximum for queries, and for keys that of their row.
// Causal keys take the maximum so far instead: nothing comes from the future,
// and earlier sums are multiplied by exp(m_j - m_i).
//
// Shapes: query [B, H, L, D], key [B, Hkv, S, D], value [B, Hkv, S, M],
// projection [Hkv, R, D] (or any divisor of Hkv of them), weights as in
// linear_attention. With F = R features (2 R for sin and cos) states are
// [rows, Hkv, F, M], [rows, Hkv, F] and [rows, Hkv], in float32 (float64 for
// float64). When not causal the features of keys refer to one maximum, so a
// state is that of complete rows: with one there are no further keys. Rows as
// in linear_attention. eps: 1e-4 R^-1/2 for "positive", 1e-3 for "relu", else
// 0. Cost: O((L + S) R (D + M)) time, linear memory. Differentiable: query,
// key, value, projection, states.
struct PerformerArguments {
  bool causal = false;
  std::string_view kind = "positive";
  std::optional<double> eps;
  bool stabilizer_gradient = true;
  double floor = 0.1;
  std::optional<double> scale;
  OptionalTensor query_weight;
  OptionalTensor key_weight;
  OptionalTensor state_kv;
  OptionalTensor state_k;
  OptionalTensor state_log_scale;
  RowArguments rows;
};

AttentionAndState performer_attention(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value,
    const at::Tensor& projection,
    const PerformerArguments& arguments);

} // namespace subquad
