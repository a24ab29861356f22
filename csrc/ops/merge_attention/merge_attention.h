#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

namespace subquad {

// Attention over the union of two disjoint sets of keys, from the attention
// over each and the log-sum-exp of its logits:
//
//   lse = log(exp(lse_a) + exp(lse_b))
//   output = exp(lse_a - lse) output_a + exp(lse_b - lse) output_b
//
// A side that saw nothing (lse -inf) is not read; without any side the output
// is 0, lse -inf and every gradient 0.
//
// Shapes: outputs [B, H, L, M], lse [B, H, L] in float32 (float64 for float64).
// All inputs are differentiable. Cost: O(L * M), nothing but the results is
// stored.
struct MergeAttentionInputs {
  at::Tensor output_a;
  at::Tensor lse_a;
  at::Tensor output_b;
  at::Tensor lse_b;
};

using MergeAttentionOutputs = std::tuple<at::Tensor, at::Tensor>;
using MergeAttentionGradientTensors =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

void check_merge_attention(const MergeAttentionInputs& inputs);

MergeAttentionOutputs empty_merge_attention_outputs(
    const MergeAttentionInputs& inputs);
MergeAttentionGradientTensors empty_merge_attention_gradients(
    const MergeAttentionInputs& inputs,
    std::array<bool, 4> output_mask);

} // namespace subquad
