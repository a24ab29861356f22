#include "ops/calls.h"

#include <ATen/core/dispatch/Dispatcher.h>

namespace subquad {

namespace {

using LinearAttentionSignature = AttentionAndState(
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
    const OptionalTensor& query_cu_seqlens);

using RandomFeaturesSignature = std::tuple<at::Tensor, at::Tensor>(
    const at::Tensor& input,
    const at::Tensor& projection,
    std::string_view kind,
    std::string_view stabilizer,
    bool stabilizer_gradient,
    double eps,
    std::optional<double> scale,
    const OptionalTensor& initial_log_scale,
    const OptionalTensor& lengths,
    const OptionalTensor& starts,
    const OptionalTensor& order,
    const OptionalTensor& cu_seqlens);

using SequencePoolSignature = at::Tensor(
    const at::Tensor& logits,
    const at::Tensor& value,
    const OptionalTensor& lengths,
    const OptionalTensor& starts,
    const OptionalTensor& order,
    const OptionalTensor& cu_seqlens);

using CosineWeightsSignature = at::Tensor(
    const at::Tensor& position,
    std::optional<c10::SymInt> max_length,
    const OptionalTensor& lengths,
    std::optional<at::ScalarType> dtype);

template <typename Signature>
auto find(const char* name) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(name, "")
      .typed<Signature>();
}

} // namespace

RowArguments RowArguments::of_queries(bool causal) const {
  if (causal) {
    return *this;
  }
  RowArguments rows;
  rows.lengths = query_lengths;
  rows.starts = query_starts;
  rows.order = query_order;
  rows.cu_seqlens =
      query_cu_seqlens.has_value() ? query_cu_seqlens : cu_seqlens;
  return rows;
}

AttentionAndState call_linear_attention(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value,
    const LinearAttentionArguments& arguments) {
  static const auto op =
      find<LinearAttentionSignature>("subquad::linear_attention_with_state");
  const RowArguments& rows = arguments.rows;
  return op.call(
      query,
      key,
      value,
      arguments.causal,
      /*blindspot=*/1,
      arguments.normalize,
      arguments.floor,
      arguments.scale,
      arguments.query_map,
      arguments.key_map,
      /*feature_offset=*/0.0,
      /*feature_degree=*/1,
      arguments.query_weight,
      arguments.key_weight,
      arguments.key_log_scale,
      arguments.state_kv,
      arguments.state_k,
      arguments.state_log_scale,
      rows.lengths,
      rows.starts,
      rows.query_lengths,
      rows.query_starts,
      rows.order,
      rows.query_order,
      rows.cu_seqlens,
      rows.query_cu_seqlens);
}

std::tuple<at::Tensor, at::Tensor> call_random_features(
    const at::Tensor& input,
    const at::Tensor& projection,
    const RandomFeaturesArguments& arguments) {
  static const auto op =
      find<RandomFeaturesSignature>("subquad::random_features");
  const RowArguments& rows = arguments.rows;
  return op.call(
      input,
      projection,
      arguments.kind,
      arguments.stabilizer,
      arguments.stabilizer_gradient,
      arguments.eps,
      arguments.scale,
      arguments.initial_log_scale,
      rows.lengths,
      rows.starts,
      rows.order,
      rows.cu_seqlens);
}

at::Tensor call_sequence_pool(
    const at::Tensor& logits,
    const at::Tensor& value,
    const RowArguments& rows) {
  static const auto op = find<SequencePoolSignature>("subquad::sequence_pool");
  return op.call(
      logits, value, rows.lengths, rows.starts, rows.order, rows.cu_seqlens);
}

at::Tensor call_cosine_weights(
    const at::Tensor& position,
    const std::optional<c10::SymInt>& max_length,
    const OptionalTensor& lengths,
    at::ScalarType dtype) {
  static const auto op =
      find<CosineWeightsSignature>("subquad::cosine_weights");
  return op.call(position, max_length, lengths, dtype);
}

} // namespace subquad
