#include "ops/efficient_attention/efficient_attention.h"

#include <ATen/OpMathType.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <cmath>

#include "ops/calls.h"
#include "ops/checks.h"

namespace subquad {

namespace {

constexpr const char* kOp = "efficient_attention";

// sequence_pool has the keys' part of these rules, but calls keys logits.
void check(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value) {
  check_rank(kOp, "query", query, 4, "[B, H, L, D]");
  check_floating_point(kOp, "query", query);
  check_rank(kOp, "key", key, 4, "[B, Hkv, S, D]");
  check_floating_point(kOp, "key", key);
  check_rank(kOp, "value", value, 4, "[B, Hkv, S, M]");
  check_floating_point(kOp, "value", value);
  check_size(kOp, "key", key, 0, query.sym_size(0), "B");
  check_size(kOp, "key", key, 3, query.sym_size(3), "D");
  check_size(kOp, "value", value, 0, query.sym_size(0), "B");
  check_size(kOp, "value", value, 1, key.sym_size(1), "Hkv");
  check_size(kOp, "value", value, 2, key.sym_size(2), "S");
  check_same_device(kOp, "key", key, query);
  check_same_device(kOp, "value", value, query);
}

} // namespace

at::Tensor efficient_attention(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value,
    std::optional<double> scale,
    const OptionalTensor& lengths,
    const OptionalTensor& starts,
    const OptionalTensor& query_lengths,
    const OptionalTensor& query_starts,
    const OptionalTensor& order,
    const OptionalTensor& query_order,
    const OptionalTensor& cu_seqlens,
    const OptionalTensor& query_cu_seqlens) {
  check(query, key, value);
  RowArguments rows;
  rows.lengths = lengths;
  rows.starts = starts;
  rows.order = order;
  rows.cu_seqlens = cu_seqlens;
  const at::Tensor context = // [R, Hkv, D, M]
      call_sequence_pool(key, value, rows);
  // The context is the state that keys would have left: none are passed.
  LinearAttentionArguments attention;
  attention.normalize = false;
  attention.floor = 0.0;
  const double width = query.sym_size(3).guard_int(__FILE__, __LINE__);
  attention.scale = scale.value_or(1.0 / std::sqrt(width));
  attention.query_map = "softmax";
  attention.state_kv = context.to(at::toOpMathType(context.scalar_type()));
  attention.state_k = at::zeros_symint(
      {context.sym_size(0), context.sym_size(1), context.sym_size(2)},
      attention.state_kv->options());
  attention.rows.query_lengths = query_lengths;
  attention.rows.query_starts = query_starts;
  attention.rows.query_order = query_order;
  if (cu_seqlens.has_value()) {
    attention.rows.cu_seqlens = at::zeros_like(*cu_seqlens);
  }
  attention.rows.query_cu_seqlens =
      query_cu_seqlens.has_value() ? query_cu_seqlens : cu_seqlens;
  return std::get<0>(call_linear_attention(
      query,
      key.narrow_symint(2, 0, 0),
      value.narrow_symint(2, 0, 0),
      attention));
}

namespace {

TORCH_LIBRARY_IMPL(subquad, CompositeImplicitAutograd, m) {
  m.impl("efficient_attention", &efficient_attention);
}

} // namespace

} // namespace subquad
