#include "ops/spans.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/all.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include "ops/checks.h"

namespace subquad {

namespace {

void check_row_vector(
    const char* op,
    const std::string& name,
    const at::Tensor& vector,
    const at::Tensor& tensor,
    const char* tensor_name) {
  check_index_dtype(op, name.c_str(), vector);
  check_same_device(op, name.c_str(), vector, tensor, tensor_name);
  check_rank(op, name.c_str(), vector, 1, "a vector");
}

void check_order(
    const char* op,
    const std::string& prefix,
    const at::Tensor& tensor,
    const char* tensor_name,
    const c10::SymInt& tokens,
    bool lengths,
    bool starts,
    bool cu_seqlens,
    const at::Tensor& order) {
  const std::string name = prefix + "order";
  TORCH_CHECK_VALUE(
      !starts && !cu_seqlens,
      op,
      ": ",
      name,
      " excludes ",
      prefix,
      "starts and ",
      prefix,
      "cu_seqlens, got ",
      starts ? "starts" : "cu_seqlens");
  TORCH_CHECK_VALUE(
      lengths, op, ": ", name, " needs ", prefix, "lengths, got none");
  check_index_dtype(op, name.c_str(), order);
  check_same_device(op, name.c_str(), order, tensor, tensor_name);
  check_rank(op, name.c_str(), order, 2, "[batch size, tokens]");
  check_size(op, name.c_str(), order, 0, tensor.sym_size(0), "the batch size");
  check_size(op, name.c_str(), order, 1, tokens, "the number of tokens");
}

} // namespace

std::optional<at::Tensor> make_spans(
    const char* op,
    const char* what,
    const at::Tensor& tensor,
    const c10::SymInt& tokens,
    const std::optional<at::Tensor>& lengths,
    const std::optional<at::Tensor>& starts,
    const std::optional<at::Tensor>& cu_seqlens,
    const std::optional<at::Tensor>& order,
    const char* tensor_name) {
  const std::string prefix(what);
  if (order.has_value()) {
    check_order(
        op,
        prefix,
        tensor,
        tensor_name,
        tokens,
        lengths.has_value(),
        starts.has_value(),
        cu_seqlens.has_value(),
        *order);
  }
  if (cu_seqlens.has_value()) {
    TORCH_CHECK_VALUE(
        !lengths.has_value() && !starts.has_value(),
        op,
        ": ",
        prefix,
        "cu_seqlens excludes ",
        prefix,
        "lengths and ",
        prefix,
        "starts, got both");
    check_row_vector(
        op, prefix + "cu_seqlens", *cu_seqlens, tensor, tensor_name);
    TORCH_CHECK_VALUE(
        cu_seqlens->sym_size(0) >= 1,
        op,
        ": ",
        prefix,
        "cu_seqlens must have R + 1 entries, got 0");
    TORCH_CHECK_VALUE(
        tensor.dim() == 4 && tensor.sym_size(0) == 1,
        op,
        ": packed rows (",
        prefix,
        "cu_seqlens) need a batch of 1, got ",
        tensor.sym_size(0));
    const c10::SymInt rows = cu_seqlens->sym_size(0) - 1;
    const at::Tensor begin = cu_seqlens->narrow_symint(0, 0, rows);
    const at::Tensor end = cu_seqlens->narrow_symint(0, 1, rows);
    return at::stack({begin, at::sub(end, begin)}, 1);
  }
  if (!lengths.has_value()) {
    TORCH_CHECK_VALUE(
        !starts.has_value(),
        op,
        ": ",
        prefix,
        "starts needs ",
        prefix,
        "lengths, got none");
    return std::nullopt;
  }
  check_row_vector(op, prefix + "lengths", *lengths, tensor, tensor_name);
  check_size(
      op,
      (prefix + "lengths").c_str(),
      *lengths,
      0,
      tensor.sym_size(0),
      "the batch size");
  if (!starts.has_value()) {
    return at::stack({at::zeros_like(*lengths), *lengths}, 1);
  }
  check_row_vector(op, prefix + "starts", *starts, tensor, tensor_name);
  check_size(
      op,
      (prefix + "starts").c_str(),
      *starts,
      0,
      tensor.sym_size(0),
      "the batch size");
  return at::stack({*starts, *lengths}, 1);
}

void place_ordered_rows(
    std::optional<at::Tensor>& spans,
    std::optional<at::Tensor>& order) {
  if (!order.has_value() || order->numel() == 0) {
    return;
  }
  const int64_t tokens = order->size(1);
  const at::Tensor lengths = spans->slice(1, 1, 2); // [R, 1]
  const at::Tensor rank = at::arange(tokens, order->options());
  const at::Tensor first = order->slice(1, 0, 1); // [R, 1]
  const at::Tensor in_place =
      ((*order == first + rank) | (rank >= lengths)).all(1, true) &
      (first >= 0) & (first <= tokens - lengths);
  const at::Tensor start = at::where(in_place, first, at::zeros_like(first));
  spans = at::stack({start.squeeze(1), lengths.squeeze(1)}, 1);
  order = at::where(in_place, rank, *order);
}

void check_span_values(
    const char* op,
    const char* what,
    const std::optional<at::Tensor>& spans,
    int64_t size) {
  if (!spans.has_value()) {
    return;
  }
  const int64_t* table = spans->const_data_ptr<int64_t>();
  for (int64_t row = 0; row < spans->size(0); ++row) {
    const int64_t start = table[2 * row];
    const int64_t length = table[2 * row + 1];
    TORCH_CHECK_VALUE(
        start >= 0 && length >= 0 && length <= size - start,
        op,
        ": the ",
        what,
        " tokens of a row must be a span inside [0, ",
        size,
        "), got start ",
        start,
        " and length ",
        length,
        " in row ",
        row);
  }
}

} // namespace subquad
