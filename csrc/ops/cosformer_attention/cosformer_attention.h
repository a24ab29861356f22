#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <string_view>

#include "ops/calls.h"

namespace subquad {

// cosFormer (Qin et al. 2022, arXiv:2202.08791, eq. 10 and 12): linear
// attention whose features carry the angles of positions,
//
//   output_i = phi(q_i) S_i / max(phi(q_i) . z_i, floor)
//   S_i = sum_j phi(k_j) v_j^T,  z_i = sum_j phi(k_j)
//   phi(x_i) = [f(x_i) sin theta_i, f(x_i) cos theta_i]
//
// over the keys of the row, or, when causal, those up to i; theta as in
// cosine_weights, f = relu or 1 + elu. Positions are given or count the valid
// tokens of a row. m is max_length, else the larger of the row's numbers of
// valid queries and keys.
//
// Shapes: query [B, H, L, D], key [B, Hkv, S, D], value [B, Hkv, S, M],
// positions [L] or [B, L] and [S] or [B, S] int64; states
// [rows, Hkv, 2 D, M] and [rows, Hkv, 2 D] in float32 (float64 for float64), to
// continue a sequence whose positions are given. Rows as in linear_attention.
// Causal queries are the keys: one of the two positions serves both. Cost:
// O((L + S) D M) time, linear memory. Differentiable: query, key, value,
// states.
struct CosformerArguments {
  bool causal = false;
  std::string_view activation = "relu";
  std::optional<c10::SymInt> max_length;
  OptionalTensor query_position;
  OptionalTensor key_position;
  double floor = 1e-6;
  OptionalTensor state_kv;
  OptionalTensor state_k;
  RowArguments rows;
};

AttentionAndState cosformer_attention(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value,
    const CosformerArguments& arguments);

} // namespace subquad
