#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "ops/linear_attention/linear_attention.h"
#include "ops/optional.h"

// The dispatcher wants flat argument lists. Each list stands here once; the
// functions behind it take (inputs, options).
namespace subquad {

// _linear_attention_forward
template <auto function>
struct LinearAttentionForward {
  static LinearAttentionOutputs call(
      const at::Tensor& query,
      const at::Tensor& key,
      const at::Tensor& value,
      const OptionalTensor& key_log_scale,
      const OptionalTensor& state_kv,
      const OptionalTensor& state_k,
      const OptionalTensor& state_log_scale,
      const OptionalTensor& query_weight,
      const OptionalTensor& key_weight,
      bool causal,
      c10::SymInt blindspot,
      bool normalize,
      double floor,
      double scale,
      std::string_view query_map,
      std::string_view key_map,
      double feature_offset,
      int64_t feature_degree,
      const OptionalTensor& query_spans,
      const OptionalTensor& key_spans,
      bool packed,
      const OptionalTensor& query_order,
      const OptionalTensor& key_order) {
    return function(
        LinearAttentionInputs{
            query,
            key,
            value,
            key_log_scale,
            state_kv,
            state_k,
            state_log_scale},
        LinearAttentionOptions{
            query_weight,
            key_weight,
            causal,
            std::move(blindspot),
            normalize,
            floor,
            scale,
            std::string(query_map),
            std::string(key_map),
            feature_offset,
            feature_degree,
            query_spans,
            key_spans,
            packed,
            query_order,
            key_order});
  }
};

// What backward gets besides inputs and options.
struct LinearAttentionSaved {
  std::optional<at::Tensor> grad_output;
  std::optional<at::Tensor> grad_state_kv;
  std::optional<at::Tensor> grad_state_k;
  std::optional<at::Tensor> grad_state_log_scale;
  LinearAttentionOutputs outputs;
};

// _linear_attention_backward
template <auto function>
struct LinearAttentionBackward {
  static LinearAttentionGradientTensors call(
      const OptionalTensor& grad_output,
      const OptionalTensor& grad_state_kv,
      const OptionalTensor& grad_state_k,
      const OptionalTensor& grad_state_log_scale,
      const at::Tensor& output,
      const at::Tensor& denominator,
      const at::Tensor& new_state_kv,
      const at::Tensor& new_state_k,
      const at::Tensor& new_state_log_scale,
      const at::Tensor& query,
      const at::Tensor& key,
      const at::Tensor& value,
      const OptionalTensor& key_log_scale,
      const OptionalTensor& state_kv,
      const OptionalTensor& state_k,
      const OptionalTensor& state_log_scale,
      const OptionalTensor& query_weight,
      const OptionalTensor& key_weight,
      bool causal,
      c10::SymInt blindspot,
      bool normalize,
      double floor,
      double scale,
      std::string_view query_map,
      std::string_view key_map,
      double feature_offset,
      int64_t feature_degree,
      const OptionalTensor& query_spans,
      const OptionalTensor& key_spans,
      bool packed,
      const OptionalTensor& query_order,
      const OptionalTensor& key_order,
      std::array<bool, 7> output_mask) {
    return function(
        LinearAttentionSaved{
            grad_output,
            grad_state_kv,
            grad_state_k,
            grad_state_log_scale,
            {output,
             denominator,
             new_state_kv,
             new_state_k,
             new_state_log_scale}},
        LinearAttentionInputs{
            query,
            key,
            value,
            key_log_scale,
            state_kv,
            state_k,
            state_log_scale},
        LinearAttentionOptions{
            query_weight,
            key_weight,
            causal,
            std::move(blindspot),
            normalize,
            floor,
            scale,
            std::string(query_map),
            std::string(key_map),
            feature_offset,
            feature_degree,
            query_spans,
            key_spans,
            packed,
            query_order,
            key_order},
        output_mask);
  }
};

// The rows of a public call, which become spans.
struct LinearAttentionRows {
  const OptionalTensor& lengths;
  const OptionalTensor& starts;
  const OptionalTensor& query_lengths;
  const OptionalTensor& query_starts;
  const OptionalTensor& order;
  const OptionalTensor& query_order;
  const OptionalTensor& cu_seqlens;
  const OptionalTensor& query_cu_seqlens;
};

LinearAttentionOptions make_linear_attention_options(
    const LinearAttentionInputs& inputs,
    LinearAttentionOptions options,
    const LinearAttentionRows& rows);

// linear_attention and linear_attention_with_state
template <auto function>
struct LinearAttentionPublic {
  static auto call(
      const at::Tensor& query,
      const at::Tensor& key,
      const at::Tensor& value,
      bool causal,
      c10::SymInt blindspot,
      bool normalize,
      double floor,
      double scale,
      std::string_view query_map,
      std::string_view key_map,
      double feature_offset,
      int64_t feature_degree,
      const OptionalTensor& query_weight,
      const OptionalTensor& key_weight,
      const OptionalTensor& key_log_scale,
      const OptionalTensor& state_kv,
      const OptionalTensor& state_k,
      const OptionalTensor& state_log_scale,
      const OptionalTensor& lengths,
      const OptionalTensor& starts,
      const OptionalTensor& query_lengths,
      const OptionalTensor& query_starts,
      const OptionalTensor& order,
      const OptionalTensor& query_order,
      const OptionalTensor& cu_seqlens,
      const OptionalTensor& query_cu_seqlens) {
    const LinearAttentionInputs inputs{
        query, key, value, key_log_scale, state_kv, state_k, state_log_scale};
    return function(
        inputs,
        make_linear_attention_options(
            inputs,
            LinearAttentionOptions{
                query_weight,
                key_weight,
                causal,
                std::move(blindspot),
                normalize,
                floor,
                scale,
                std::string(query_map),
                std::string(key_map),
                feature_offset,
                feature_degree},
            {lengths,
             starts,
             query_lengths,
             query_starts,
             order,
             query_order,
             cu_seqlens,
             query_cu_seqlens}));
  }
};

} // namespace subquad
