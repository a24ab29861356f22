#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>

#include "common/feature_map.h"

namespace subquad {

// Attention with a kernel that is a product of features (Katharopoulos et al.
// 2020, arXiv:2006.16236, eq. 5 and 12):
//
//   S_i = sum_{j seen by i} exp(m_j - m_i) phi_k(k_j) v_j^T
//   z_i = sum_{j seen by i} exp(m_j - m_i) phi_k(k_j)
//   output_i = scale phi_q(q_i) S_i / max(scale phi_q(q_i) . z_i, floor)
//
// with features phi(x) = [w_1 (map(x) + offset), ..., w_C (map(x) + offset)].
// Without weights C = 1 and w = 1; without key_log_scale m = 0; without
// normalize there is no denominator. Every query sees every key of its row, or,
// when causal, those up to itself (blindspot = 1) or those of the complete
// buckets of `blindspot` tokens before its own.
//
// Sums that a call leaves (state_kv = S, state_k = z, state_log_scale = m after
// the last key) are what the next one continues from, for prefixes, single
// steps and chunks. With a blindspot > 1 the state sums complete buckets only,
// and a call begins at the start of a bucket.
//
// With weights cos and sin of positions it is cosFormer (Qin et al. 2022,
// arXiv:2202.08791, eq. 10); with random features and their running maximum as
// key_log_scale it is causal Performer (Choromanski et al. 2021,
// arXiv:2009.14794).
//
// Shapes: query [B, H, L, D], key [B, Hkv, S, D], value [B, Hkv, S, M], output
// [B, H, L, M]; H % Hkv == 0; states [R, Hkv, F, M], [R, Hkv, F] and [R, Hkv]
// with R rows and F features. dtypes: float64, float32, bfloat16, float16;
// weights, log scales, states and all sums in float32 (float64 for float64).
// Rows are spans of valid tokens or orders of scattered ones, as in
// window_attention; causal queries and keys are the same tokens. What lies
// outside a row or is not seen is never read into a result; a query that sees
// nothing gets zeros. Cost: O((L + S) F (M + T)) time with tiles of T tokens;
// memory of inputs and results, plus O(S F M / T) in backward and, on CUDA, in
// forward. Not differentiable: weights, spans.
struct LinearAttentionOptions {
  std::optional<at::Tensor> query_weight; // [1 or B, L, C]
  std::optional<at::Tensor> key_weight;   // [1 or B, S, C]
  bool causal = false;
  c10::SymInt blindspot = 1;
  bool normalize = true;
  double floor = 1e-6;
  double scale = 1.0;
  std::string query_map = "identity";
  std::string key_map = "identity";
  double feature_offset = 0.0;
  int64_t feature_degree = 1;
  std::optional<at::Tensor> query_spans = std::nullopt; // [R, 2] int64
  std::optional<at::Tensor> key_spans = std::nullopt;   // [R, 2] int64
  bool packed = false;
  std::optional<at::Tensor> query_order = std::nullopt; // [B, L] int64
  std::optional<at::Tensor> key_order = std::nullopt;   // [B, S] int64
};

// The differentiable inputs, in the order of the schema and of output_mask.
struct LinearAttentionInputs {
  at::Tensor query;
  at::Tensor key;
  at::Tensor value;
  std::optional<at::Tensor> key_log_scale;   // [B, Hkv, S]
  std::optional<at::Tensor> state_kv;        // [R, Hkv, F, M]
  std::optional<at::Tensor> state_k;         // [R, Hkv, F]
  std::optional<at::Tensor> state_log_scale; // [R, Hkv]
};

// output, denominator [B, H, L] before the floor, and the new state. Its log
// scale is empty without key_log_scale.
using LinearAttentionOutputs =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

using LinearAttentionGradientTensors = std::tuple<
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor>;

// Refuses unknown names.
FeatureMap parse_feature_map(const char* argument, const std::string& name);

// The checks that need no data; every backend calls them.
void check_linear_attention(
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options);

// Fresh results, or gradients (empty where the mask says no). Their layout is
// part of what Meta promises, so all backends allocate here.
LinearAttentionOutputs empty_linear_attention_outputs(
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options);
LinearAttentionGradientTensors empty_linear_attention_gradients(
    const LinearAttentionInputs& inputs,
    std::array<bool, 7> output_mask);

} // namespace subquad
