#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "ops/optional.h"

// The public operators as mechanisms that are composed of them call them:
// through the dispatcher, so that autograd, autocast and tracing apply.
namespace subquad {

// The arguments that tell rows, as in the schemas; absent unless set.
struct RowArguments {
  OptionalTensor lengths;
  OptionalTensor starts;
  OptionalTensor query_lengths;
  OptionalTensor query_starts;
  OptionalTensor order;
  OptionalTensor query_order;
  OptionalTensor cu_seqlens;
  OptionalTensor query_cu_seqlens;

  // Those of the queries, as if they were keys.
  RowArguments of_queries(bool causal) const;
};

struct LinearAttentionArguments {
  bool causal = false;
  bool normalize = true;
  double floor = 1e-6;
  double scale = 1.0;
  std::string_view query_map = "identity";
  std::string_view key_map = "identity";
  OptionalTensor query_weight;
  OptionalTensor key_weight;
  OptionalTensor key_log_scale;
  OptionalTensor state_kv;
  OptionalTensor state_k;
  OptionalTensor state_log_scale;
  RowArguments rows;
};

// output, state_kv, state_k, state_log_scale
using AttentionAndState =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

AttentionAndState call_linear_attention(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value,
    const LinearAttentionArguments& arguments);

struct RandomFeaturesArguments {
  std::string_view kind = "positive";
  std::string_view stabilizer = "token";
  bool stabilizer_gradient = true;
  double eps = 0.0;
  std::optional<double> scale;
  OptionalTensor initial_log_scale;
  RowArguments rows; // of the input, as keys
};

// features, log_scale
std::tuple<at::Tensor, at::Tensor> call_random_features(
    const at::Tensor& input,
    const at::Tensor& projection,
    const RandomFeaturesArguments& arguments);

// [R, H, C, M]
at::Tensor call_sequence_pool(
    const at::Tensor& logits,
    const at::Tensor& value,
    const RowArguments& rows);

// [1 or B, N, 2]
at::Tensor call_cosine_weights(
    const at::Tensor& position,
    const std::optional<c10::SymInt>& max_length,
    const OptionalTensor& lengths,
    at::ScalarType dtype);

} // namespace subquad
