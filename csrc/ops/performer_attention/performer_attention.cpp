#include "ops/performer_attention/performer_attention.h"

#include <torch/library.h>

#include <cmath>

#include "ops/checks.h"

namespace subquad {

namespace {

double default_eps(std::string_view kind, const at::Tensor& projection) {
  if (kind == "positive") {
    const int64_t features =
        projection.sym_size(1).guard_int(__FILE__, __LINE__);
    return 1e-4 / std::sqrt(static_cast<double>(features));
  }
  return kind == "relu" ? 1e-3 : 0.0;
}

} // namespace

AttentionAndState performer_attention(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value,
    const at::Tensor& projection,
    const PerformerArguments& arguments) {
  constexpr const char* kOp = "performer_attention";
  check_rank(kOp, "query", query, 4, "[B, H, L, D]");
  check_rank(kOp, "key", key, 4, "[B, Hkv, S, D]");
  check_rank(kOp, "projection", projection, 3, "[Hkv, R, D]");
  const bool causal = arguments.causal;
  const bool stabilised =
      arguments.kind == "positive" || arguments.kind == "trigonometric";
  TORCH_CHECK_VALUE(
      causal || !stabilised || !arguments.state_kv.has_value() ||
          key.sym_size(2) == 0,
      kOp,
      ": without causal a state is that of complete rows and takes no further "
      "keys, got ",
      key.sym_size(2));

  RandomFeaturesArguments features;
  features.kind = arguments.kind;
  features.stabilizer = stabilised ? "token" : "none";
  features.stabilizer_gradient = arguments.stabilizer_gradient;
  features.eps = arguments.eps.has_value()
      ? *arguments.eps
      : default_eps(arguments.kind, projection);
  features.scale = arguments.scale;
  features.rows = arguments.rows.of_queries(causal);
  const at::Tensor phi_q =
      std::get<0>(call_random_features(query, projection, features));

  features.rows = arguments.rows;
  if (stabilised) {
    features.stabilizer = causal ? "prefix" : "row";
  }
  if (stabilised && causal) {
    features.initial_log_scale = arguments.state_log_scale;
  }
  const auto [phi_k, log_scale] =
      call_random_features(key, projection, features);

  LinearAttentionArguments attention;
  attention.causal = causal;
  attention.floor = arguments.floor;
  attention.query_weight = arguments.query_weight;
  attention.key_weight = arguments.key_weight;
  attention.state_kv = arguments.state_kv;
  attention.state_k = arguments.state_k;
  if (stabilised && causal) {
    attention.key_log_scale = log_scale;
    attention.state_log_scale = arguments.state_log_scale;
  }
  attention.rows = arguments.rows;
  return call_linear_attention(phi_q, phi_k, value, attention);
}

namespace {

AttentionAndState with_state(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value,
    const at::Tensor& projection,
    bool causal,
    std::string_view kind,
    std::optional<double> eps,
    bool stabilizer_gradient,
    double floor,
    std::optional<double> scale,
    const OptionalTensor& query_weight,
    const OptionalTensor& key_weight,
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
  return performer_attention(
      query,
      key,
      value,
      projection,
      {causal,
       kind,
       eps,
       stabilizer_gradient,
       floor,
       scale,
       query_weight,
       key_weight,
       state_kv,
       state_k,
       state_log_scale,
       {lengths,
        starts,
        query_lengths,
        query_starts,
        order,
        query_order,
        cu_seqlens,
        query_cu_seqlens}});
}

at::Tensor without_state(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value,
    const at::Tensor& projection,
    bool causal,
    std::string_view kind,
    std::optional<double> eps,
    bool stabilizer_gradient,
    double floor,
    std::optional<double> scale,
    const OptionalTensor& query_weight,
    const OptionalTensor& key_weight,
    const OptionalTensor& lengths,
    const OptionalTensor& starts,
    const OptionalTensor& query_lengths,
    const OptionalTensor& query_starts,
    const OptionalTensor& order,
    const OptionalTensor& query_order,
    const OptionalTensor& cu_seqlens,
    const OptionalTensor& query_cu_seqlens) {
  return std::get<0>(with_state(
      query,
      key,
      value,
      projection,
      causal,
      kind,
      eps,
      stabilizer_gradient,
      floor,
      scale,
      query_weight,
      key_weight,
      std::nullopt,
      std::nullopt,
      std::nullopt,
      lengths,
      starts,
      query_lengths,
      query_starts,
      order,
      query_order,
      cu_seqlens,
      query_cu_seqlens));
}

TORCH_LIBRARY_IMPL(subquad, CompositeImplicitAutograd, m) {
  m.impl("performer_attention", &without_state);
  m.impl("performer_attention_with_state", &with_state);
}

} // namespace

} // namespace subquad
