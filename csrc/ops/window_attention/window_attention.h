#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <array>
#include <optional>
#include <tuple>

namespace subquad {

// Softmax attention over a window of keys and, optionally, shared summary keys,
// with one softmax over both.
//
// A query at position p lies in the block that starts at
// b = floor(p / block) * block. It sees the keys j of its row with
// b - left <= j < b + block + right, and j <= p when causal; slot = j - b +
// left. It sees the summaries c < clamp(summary_offset + floor(p /
// summary_block) * summaries_per_block, 0, C) = limit(p), or all of them when
// summary_block is 0.
//
//   logit[j] = scale * q . k[j] + bias[h, p - b, slot] + key_bias[j]
//              + q . relative_key[h, slot]
//   logit[c] = scale * q . summary_key[c]
//              + q . summary_relative_key[h, limit(p) - 1 - c]
//   output   = sum softmax(logit) * (value | summary_value)
//
// block = 1 is a sliding window (Beltagy, Peters and Cohan 2020,
// arXiv:2004.05150), block = w block-local attention; with summaries it is the
// attention of Long-Short Transformer (Zhu et al. 2021, arXiv:2107.02192) and
// of EVA (Zheng et al. 2023, arXiv:2302.04542).
//
// Shapes: query [B, H, L, D], key [B, Hkv, S, D], value [B, Hkv, S, M], output
// [B, H, L, M], lse [B, H, L]; H % Hkv == 0. dtypes: float64, float32,
// bfloat16, float16; sums and lse in float32 (float64 for float64).
// Rows are spans of valid tokens; what lies outside a span is never read into a
// result. With an order, row b is the tokens order[b, :length[b]], wherever
// they lie; where they are no span, CPU kernels get compact copies. A query
// without keys gets zeros, lse = -inf and zero gradients. Cost: O(L * W * (D +
// M)) time for windows of W keys; memory of the inputs and output, plus O(L *
// (D + M)) workspace in backward. Not differentiable: positions, spans, limits,
// the dropout state.
struct WindowAttentionOptions {
  c10::SymInt block;
  c10::SymInt left;
  c10::SymInt right;
  bool causal = false;
  c10::SymInt query_offset = 0;
  std::optional<at::Tensor> query_position; // [L] or [B, L] int64
  std::optional<at::Tensor> query_spans;    // [R, 2] int64
  std::optional<at::Tensor> key_spans;      // [R, 2] int64
  bool packed = false;
  std::optional<at::Tensor> query_order;     // [B, L] int64
  std::optional<at::Tensor> key_order;       // [B, S] int64
  std::optional<at::Tensor> summary_lengths; // [R] int64
  c10::SymInt summary_offset = 0;
  c10::SymInt summary_block = 0;
  c10::SymInt summaries_per_block = 1;
  double dropout = 0.0;
  std::optional<at::Tensor> dropout_state; // [2] int64
  double scale = 1.0;
};

// The differentiable inputs, in the order of the schema and of output_mask.
struct WindowAttentionInputs {
  at::Tensor query;
  at::Tensor key;
  at::Tensor value;
  std::optional<at::Tensor> bias;
  std::optional<at::Tensor> key_bias;
  std::optional<at::Tensor> relative_key;
  std::optional<at::Tensor> summary_key;
  std::optional<at::Tensor> summary_value;
  std::optional<at::Tensor> summary_relative_key;
};

using WindowAttentionGradientTensors = std::tuple<
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor>;

// The checks that need no data; every backend calls them.
void check_window_attention(
    const WindowAttentionInputs& inputs,
    const WindowAttentionOptions& options);

// Fresh output and lse, or gradients (empty where the mask says no). The layout
// of the outputs is part of what Meta promises, so all backends allocate here.
std::tuple<at::Tensor, at::Tensor> empty_window_attention_outputs(
    const WindowAttentionInputs& inputs);
WindowAttentionGradientTensors empty_window_attention_gradients(
    const WindowAttentionInputs& inputs,
    std::array<bool, 9> output_mask);

} // namespace subquad
