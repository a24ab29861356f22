#pragma once

#include <utility>

#include "ops/optional.h"
#include "ops/window_attention/window_attention.h"

// The dispatcher wants flat argument lists. Each list stands here once; the
// functions behind it take (inputs, options).
namespace subquad {

// _window_attention_forward
template <auto function>
struct WindowAttentionForward {
  static std::tuple<at::Tensor, at::Tensor> call(
      const at::Tensor& query,
      const at::Tensor& key,
      const at::Tensor& value,
      const OptionalTensor& bias,
      const OptionalTensor& key_bias,
      const OptionalTensor& relative_key,
      const OptionalTensor& summary_key,
      const OptionalTensor& summary_value,
      const OptionalTensor& summary_relative_key,
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
      const OptionalTensor& summary_lengths,
      c10::SymInt summary_offset,
      c10::SymInt summary_block,
      c10::SymInt summaries_per_block,
      double dropout,
      const OptionalTensor& dropout_state,
      double scale) {
    return function(
        WindowAttentionInputs{
            query,
            key,
            value,
            bias,
            key_bias,
            relative_key,
            summary_key,
            summary_value,
            summary_relative_key},
        WindowAttentionOptions{
            std::move(block),
            std::move(left),
            std::move(right),
            causal,
            std::move(query_offset),
            query_position,
            query_spans,
            key_spans,
            packed,
            query_order,
            key_order,
            summary_lengths,
            std::move(summary_offset),
            std::move(summary_block),
            std::move(summaries_per_block),
            dropout,
            dropout_state,
            scale});
  }
};

// What backward gets besides inputs and options.
struct WindowAttentionSaved {
  std::optional<at::Tensor> grad_output;
  std::optional<at::Tensor> grad_lse;
  at::Tensor output;
  at::Tensor lse;
};

// _window_attention_backward
template <auto function>
struct WindowAttentionBackward {
  static WindowAttentionGradientTensors call(
      const OptionalTensor& grad_output,
      const OptionalTensor& grad_lse,
      const at::Tensor& output,
      const at::Tensor& lse,
      const at::Tensor& query,
      const at::Tensor& key,
      const at::Tensor& value,
      const OptionalTensor& bias,
      const OptionalTensor& key_bias,
      const OptionalTensor& relative_key,
      const OptionalTensor& summary_key,
      const OptionalTensor& summary_value,
      const OptionalTensor& summary_relative_key,
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
      const OptionalTensor& summary_lengths,
      c10::SymInt summary_offset,
      c10::SymInt summary_block,
      c10::SymInt summaries_per_block,
      double dropout,
      const OptionalTensor& dropout_state,
      double scale,
      std::array<bool, 9> output_mask) {
    return function(
        WindowAttentionSaved{grad_output, grad_lse, output, lse},
        WindowAttentionInputs{
            query,
            key,
            value,
            bias,
            key_bias,
            relative_key,
            summary_key,
            summary_value,
            summary_relative_key},
        WindowAttentionOptions{
            std::move(block),
            std::move(left),
            std::move(right),
            causal,
            std::move(query_offset),
            query_position,
            query_spans,
            key_spans,
            packed,
            query_order,
            key_order,
            summary_lengths,
            std::move(summary_offset),
            std::move(summary_block),
            std::move(summaries_per_block),
            dropout,
            dropout_state,
            scale},
        output_mask);
  }
};

// window_attention and window_attention_with_lse: lengths, starts and
// cu_seqlens become spans, the scale gets its default.
WindowAttentionOptions make_window_attention_options(
    const WindowAttentionInputs& inputs,
    WindowAttentionOptions options,
    const OptionalTensor& lengths,
    const OptionalTensor& starts,
    const OptionalTensor& query_lengths,
    const OptionalTensor& query_starts,
    const OptionalTensor& order,
    const OptionalTensor& query_order,
    const OptionalTensor& cu_seqlens,
    const OptionalTensor& query_cu_seqlens,
    std::optional<double> scale);

template <auto function>
struct WindowAttentionPublic {
  static auto call(
      const at::Tensor& query,
      const at::Tensor& key,
      const at::Tensor& value,
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
      const OptionalTensor& summary_key,
      const OptionalTensor& summary_value,
      const OptionalTensor& summary_lengths,
      c10::SymInt summary_offset,
      c10::SymInt summary_block,
      c10::SymInt summaries_per_block,
      const OptionalTensor& summary_relative_key,
      double dropout,
      const OptionalTensor& dropout_state,
      std::optional<double> scale) {
    const WindowAttentionInputs inputs{
        query,
        key,
        value,
        bias,
        key_bias,
        relative_key,
        summary_key,
        summary_value,
        summary_relative_key};
    return function(
        inputs,
        make_window_attention_options(
            inputs,
            WindowAttentionOptions{
                std::move(block),
                std::move(left),
                std::move(right),
                causal,
                std::move(query_offset),
                query_position,
                std::nullopt,
                std::nullopt,
                false,
                std::nullopt,
                std::nullopt,
                summary_lengths,
                std::move(summary_offset),
                std::move(summary_block),
                std::move(summaries_per_block),
                dropout,
                dropout_state,
                1.0},
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
