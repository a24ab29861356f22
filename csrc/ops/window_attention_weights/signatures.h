#pragma once

#include <utility>

#include "ops/window_attention_weights/window_attention_weights.h"

// The flat argument lists that the dispatcher wants; the functions behind them
// take (inputs, options).
namespace subquad {

inline WindowAttentionWeightsInputs make_weights_inputs(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& lse,
    const OptionalTensor& bias,
    const OptionalTensor& key_bias,
    const OptionalTensor& relative_key) {
  return {
      {query,
       key,
       key,
       bias,
       key_bias,
       relative_key,
       std::nullopt,
       std::nullopt,
       std::nullopt},
      lse};
}

// _window_attention_weights_forward
template <auto function>
struct WindowAttentionWeightsForward {
  static at::Tensor call(
      const at::Tensor& query,
      const at::Tensor& key,
      const at::Tensor& lse,
      const OptionalTensor& bias,
      const OptionalTensor& key_bias,
      const OptionalTensor& relative_key,
      c10::SymInt block,
      c10::SymInt left,
      c10::SymInt right,
      bool causal,
      c10::SymInt query_offset,
      const OptionalTensor& query_position,
      const OptionalTensor& query_spans,
      const OptionalTensor& key_spans,
      bool packed,
      const OptionalTensor& query_order,
      const OptionalTensor& key_order,
      double scale) {
    WindowAttentionOptions options;
    options.block = std::move(block);
    options.left = std::move(left);
    options.right = std::move(right);
    options.causal = causal;
    options.query_offset = std::move(query_offset);
    options.query_position = query_position;
    options.query_spans = query_spans;
    options.key_spans = key_spans;
    options.packed = packed;
    options.query_order = query_order;
    options.key_order = key_order;
    options.scale = scale;
    return function(
        make_weights_inputs(query, key, lse, bias, key_bias, relative_key),
        options);
  }
};

// _window_attention_weights_backward
template <auto function>
struct WindowAttentionWeightsBackward {
  static WindowAttentionWeightsGradients call(
      const at::Tensor& grad,
      const at::Tensor& weights,
      const at::Tensor& query,
      const at::Tensor& key,
      const at::Tensor& lse,
      const OptionalTensor& bias,
      const OptionalTensor& key_bias,
      const OptionalTensor& relative_key,
      c10::SymInt block,
      c10::SymInt left,
      c10::SymInt right,
      bool causal,
      c10::SymInt query_offset,
      const OptionalTensor& query_position,
      const OptionalTensor& query_spans,
      const OptionalTensor& key_spans,
      bool packed,
      const OptionalTensor& query_order,
      const OptionalTensor& key_order,
      double scale,
      std::array<bool, 6> output_mask) {
    WindowAttentionOptions options;
    options.block = std::move(block);
    options.left = std::move(left);
    options.right = std::move(right);
    options.causal = causal;
    options.query_offset = std::move(query_offset);
    options.query_position = query_position;
    options.query_spans = query_spans;
    options.key_spans = key_spans;
    options.packed = packed;
    options.query_order = query_order;
    options.key_order = key_order;
    options.scale = scale;
    return function(
        grad,
        weights,
        make_weights_inputs(query, key, lse, bias, key_bias, relative_key),
        options,
        output_mask);
  }
};

// window_attention_weights
template <auto function>
struct WindowAttentionWeightsPublic {
  static at::Tensor call(
      const at::Tensor& query,
      const at::Tensor& key,
      const at::Tensor& lse,
      c10::SymInt block,
      c10::SymInt left,
      c10::SymInt right,
      bool causal,
      c10::SymInt query_offset,
      const OptionalTensor& query_position,
      const OptionalTensor& lengths,
      const OptionalTensor& starts,
      const OptionalTensor& query_lengths,
      const OptionalTensor& query_starts,
      const OptionalTensor& order,
      const OptionalTensor& query_order,
      const OptionalTensor& cu_seqlens,
      const OptionalTensor& query_cu_seqlens,
      const OptionalTensor& bias,
      const OptionalTensor& key_bias,
      const OptionalTensor& relative_key,
      std::optional<double> scale) {
    const WindowAttentionWeightsInputs inputs =
        make_weights_inputs(query, key, lse, bias, key_bias, relative_key);
    WindowAttentionOptions options;
    options.block = std::move(block);
    options.left = std::move(left);
    options.right = std::move(right);
    options.causal = causal;
    options.query_offset = std::move(query_offset);
    options.query_position = query_position;
    return function(
        inputs,
        make_window_attention_options(
            inputs.attention,
            std::move(options),
            lengths,
            starts,
            query_lengths,
            query_starts,
            order,
            query_order,
            cu_seqlens,
            query_cu_seqlens,
            scale));
  }
};

} // namespace subquad
