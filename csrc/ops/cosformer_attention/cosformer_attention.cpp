#include "ops/cosformer_attention/cosformer_attention.h"

#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/diff.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/spans.h"

namespace subquad {

namespace {

constexpr const char* kOp = "cosformer_attention";

// [N], the packed row of every token; tokens in none get a neighbour's.
at::Tensor packed_row(const at::Tensor& token, const at::Tensor& cu_seqlens) {
  return at::searchsorted(
      cu_seqlens.slice(0, 1, -1), token, /*out_int32=*/false, /*right=*/true);
}

// [R + 1], the lengths of packed rows, and 0 for where there is none.
at::Tensor packed_lengths(const at::Tensor& cu_seqlens) {
  return at::diff(at::cat({cu_seqlens, cu_seqlens.slice(0, -1)}));
}

// [N] or [B, N]: which valid token of its row a token is. Tokens outside rows
// get no larger numbers than those inside.
at::Tensor ranks(const at::Tensor& tokens, const RowArguments& rows) {
  const at::Tensor token = at::arange(
      c10::Scalar(tokens.sym_size(2)), tokens.options().dtype(at::kLong));
  if (rows.cu_seqlens.has_value()) {
    const at::Tensor row = packed_row(token, *rows.cu_seqlens);
    const at::Tensor length = packed_lengths(*rows.cu_seqlens);
    return (token - rows.cu_seqlens->index_select(0, row))
        .minimum(length.index_select(0, row) - 1);
  }
  if (!rows.lengths.has_value()) {
    return token;
  }
  at::Tensor rank = token;
  if (rows.order.has_value()) {
    rank = at::zeros_like(*rows.order)
               .scatter(1, *rows.order, token.expand_as(*rows.order));
  } else if (rows.starts.has_value()) {
    rank = token - rows.starts->unsqueeze(1);
  }
  return rank.minimum(rows.lengths->unsqueeze(1) - 1);
}

struct Limit {
  std::optional<c10::SymInt> size; // of all rows
  OptionalTensor query_lengths;    // [B] or [1, L]
  OptionalTensor key_lengths;      // [B] or [1, S]
};

// m, by row where rows differ.
Limit limit_of(
    const at::Tensor& query,
    const at::Tensor& key,
    const CosformerArguments& arguments) {
  if (arguments.max_length.has_value()) {
    return {arguments.max_length, std::nullopt, std::nullopt};
  }
  const RowArguments& keys = arguments.rows;
  const RowArguments queries = keys.of_queries(arguments.causal);
  const auto options = key.options().dtype(at::kLong);
  if (keys.cu_seqlens.has_value()) {
    const at::Tensor m = at::maximum( // [R + 1]
        packed_lengths(*keys.cu_seqlens),
        packed_lengths(*queries.cu_seqlens));
    const auto by_token = [&](const at::Tensor& tokens,
                              const at::Tensor& bounds) {
      const at::Tensor token =
          at::arange(c10::Scalar(tokens.sym_size(2)), options);
      return m.index_select(0, packed_row(token, bounds)).unsqueeze(0);
    };
    return {
        std::nullopt,
        by_token(query, *queries.cu_seqlens),
        by_token(key, *keys.cu_seqlens)};
  }
  if (!keys.lengths.has_value() && !queries.lengths.has_value()) {
    const c10::SymInt m = query.sym_size(2).max(key.sym_size(2)).max(1);
    return {m, std::nullopt, std::nullopt};
  }
  const auto lengths = [&](const OptionalTensor& given,
                           const at::Tensor& tokens) {
    if (given.has_value()) {
      return *given;
    }
    const at::Tensor one = at::ones({1}, options);
    return one * c10::Scalar(tokens.sym_size(2));
  };
  const at::Tensor m = // [B]
      at::maximum(lengths(keys.lengths, key), lengths(queries.lengths, query));
  return {std::nullopt, m, m};
}

} // namespace

AttentionAndState cosformer_attention(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value,
    const CosformerArguments& arguments) {
  check_rank(kOp, "query", query, 4, "[B, H, L, D]");
  check_rank(kOp, "key", key, 4, "[B, Hkv, S, D]");
  const bool causal = arguments.causal;
  const std::string_view activation = arguments.activation;
  TORCH_CHECK_VALUE(
      activation == "relu" || activation == "elu",
      kOp,
      ": activation must be 'relu' or 'elu', got '",
      activation,
      "'");
  TORCH_CHECK_VALUE(
      !arguments.max_length.has_value() || *arguments.max_length > 0,
      kOp,
      ": max_length must be positive, got ",
      *arguments.max_length);

  // Before numbers of tokens are made of them.
  const RowArguments& rows = arguments.rows;
  make_spans(
      kOp,
      "",
      key,
      key.sym_size(2),
      rows.lengths,
      rows.starts,
      rows.cu_seqlens,
      rows.order);
  make_spans(
      kOp,
      "query_",
      query,
      query.sym_size(2),
      rows.query_lengths,
      rows.query_starts,
      rows.query_cu_seqlens,
      rows.query_order);

  const at::ScalarType dtype = at::toOpMathType(query.scalar_type());
  const Limit limit = limit_of(query, key, arguments);
  const auto weights = [&](const OptionalTensor& given,
                           const at::Tensor& tokens,
                           const RowArguments& of_tokens,
                           const OptionalTensor& lengths) {
    return call_cosine_weights(
        given.has_value() ? *given : ranks(tokens, of_tokens),
        limit.size,
        lengths,
        dtype);
  };
  LinearAttentionArguments attention;
  attention.causal = causal;
  attention.floor = arguments.floor;
  attention.query_map = activation;
  attention.key_map = attention.query_map;
  const OptionalTensor& key_position =
      causal && !arguments.key_position.has_value() ? arguments.query_position
                                                    : arguments.key_position;
  attention.key_weight = weights(key_position, key, rows, limit.key_lengths);
  const bool shared = causal &&
      (!arguments.query_position.has_value() ||
       !arguments.key_position.has_value() ||
       arguments.query_position->is_same(*arguments.key_position));
  attention.query_weight = shared ? attention.key_weight
                                  : OptionalTensor(weights(
                                        arguments.query_position,
                                        query,
                                        rows.of_queries(causal),
                                        limit.query_lengths));
  attention.state_kv = arguments.state_kv;
  attention.state_k = arguments.state_k;
  attention.rows = rows;
  return call_linear_attention(query, key, value, attention);
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> with_state(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value,
    bool causal,
    std::string_view activation,
    std::optional<c10::SymInt> max_length,
    const OptionalTensor& query_position,
    const OptionalTensor& key_position,
    double floor,
    const OptionalTensor& state_kv,
    const OptionalTensor& state_k,
    const OptionalTensor& lengths,
    const OptionalTensor& starts,
    const OptionalTensor& query_lengths,
    const OptionalTensor& query_starts,
    const OptionalTensor& order,
    const OptionalTensor& query_order,
    const OptionalTensor& cu_seqlens,
    const OptionalTensor& query_cu_seqlens) {
  auto [output, kv, k, log_scale] = cosformer_attention(
      query,
      key,
      value,
      {causal,
       activation,
       max_length,
       query_position,
       key_position,
       floor,
       state_kv,
       state_k,
       {lengths,
        starts,
        query_lengths,
        query_starts,
        order,
        query_order,
        cu_seqlens,
        query_cu_seqlens}});
  return {output, kv, k};
}

at::Tensor without_state(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value,
    bool causal,
    std::string_view activation,
    std::optional<c10::SymInt> max_length,
    const OptionalTensor& query_position,
    const OptionalTensor& key_position,
    double floor,
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
      causal,
      activation,
      max_length,
      query_position,
      key_position,
      floor,
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
  m.impl("cosformer_attention", &without_state);
  m.impl("cosformer_attention_with_state", &with_state);
}

} // namespace

} // namespace subquad
