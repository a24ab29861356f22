#pragma once

#include "ops/window_attention/signatures.h"

namespace subquad {

// The softmax weights of window attention, for a look at them: what each query
// gives to the key in each slot of its window,
//
//   weight[i, slot] = exp(logit[j] - lse[i]),   j = b - left + slot,
//
// with the logits of window_attention.h, and 0 where the query sees no key in
// the slot. With the lse of window_attention_with_lse a row of weights sums to
// 1, less what summaries get.
//
// Shapes: query [B, H, L, D], key [B, Hkv, S, D], lse [B, H, L], weights
// [B, H, L, left + block + right]. Cost: O(L * W * D) time; the result is
// O(L * W). Differentiable: query, key, lse, bias, key_bias, relative_key.
struct WindowAttentionWeightsInputs {
  // key stands for value too; no summaries.
  WindowAttentionInputs attention;
  at::Tensor lse;
};

// query, key, lse, bias, key_bias, relative_key
using WindowAttentionWeightsGradients = std::tuple<
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor>;

void check_window_attention_weights(
    const WindowAttentionWeightsInputs& inputs,
    const WindowAttentionOptions& options);

at::Tensor empty_window_attention_weights(
    const WindowAttentionWeightsInputs& inputs,
    const WindowAttentionOptions& options);

WindowAttentionWeightsGradients empty_window_attention_weights_gradients(
    const WindowAttentionWeightsInputs& inputs,
    std::array<bool, 6> output_mask);

} // namespace subquad
