#include "ops/rows.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/index.h"
#include "ops/layout.h"
#include "ops/spans.h"

namespace subquad {

namespace {

// [B, heads, N, width] of any tensor that is indexed by tokens.
at::Tensor with_four_axes(const at::Tensor& tensor) {
  switch (tensor.dim()) {
    case 2:
      return tensor.unsqueeze(1).unsqueeze(3);
    case 3:
      return tensor.unsqueeze(3);
    default:
      TORCH_INTERNAL_ASSERT(tensor.dim() == 4);
      return tensor;
  }
}

void check_row(
    const char* op,
    const char* what,
    int64_t row,
    const int64_t* order,
    int64_t length,
    std::vector<bool>& seen) {
  const int64_t size = static_cast<int64_t>(seen.size());
  std::fill(seen.begin(), seen.end(), false);
  for (int64_t rank = 0; rank < length; ++rank) {
    const int64_t token = order[rank];
    TORCH_CHECK_VALUE(
        token >= 0 && token < size,
        op,
        ": the order of ",
        what,
        " tokens must lie in [0, ",
        size,
        "), got ",
        token,
        " in row ",
        row);
    TORCH_CHECK_VALUE(
        !seen[token],
        op,
        ": the order of ",
        what,
        " tokens must not repeat a token, got ",
        token,
        " twice in row ",
        row);
    seen[token] = true;
  }
}

bool is_span(const int64_t* order, int64_t length) {
  bool span = true;
  for (int64_t rank = 1; rank < length; ++rank) {
    span &= order[rank] == order[0] + rank;
  }
  return span;
}

} // namespace

Rows::Rows(
    const char* op,
    const char* what,
    const std::optional<at::Tensor>& spans,
    const std::optional<at::Tensor>& order,
    int64_t size) {
  if (!spans.has_value()) {
    return;
  }
  spans_ = spans->contiguous();
  check_span_values(op, what, spans_, size);
  if (!order.has_value()) {
    return;
  }
  order_ = order->contiguous();
  spans_ = spans_->clone();
  int64_t* table = spans_->mutable_data_ptr<int64_t>();
  std::vector<bool> seen(size);
  for (int64_t row = 0; row < spans_->size(0); ++row) {
    const int64_t* tokens = order_->const_data_ptr<int64_t>() + row * size;
    const int64_t length = table[2 * row + 1];
    if (length == 0) {
      continue;
    }
    // A span inside the axis is right without a look at every token. Its place
    // is kept in compact copies too: what becomes of a row must not depend on
    // the others.
    if (is_span(tokens, length) && tokens[0] >= 0 &&
        tokens[0] <= size - length) {
      table[2 * row] = tokens[0];
    } else {
      check_row(op, what, row, tokens, length, seen);
      scattered_ = true;
    }
  }
}

at::Tensor Rows::gather(const at::Tensor& tensor) const {
  const at::Tensor compact = workspace(tensor);
  if (scattered_) {
    copy(tensor, compact, /*gather=*/true);
  }
  return compact;
}

std::optional<at::Tensor> Rows::gather(
    const std::optional<at::Tensor>& tensor) const {
  return tensor.has_value() ? std::optional(gather(*tensor)) : std::nullopt;
}

at::Tensor Rows::workspace(const at::Tensor& result) const {
  if (!scattered_) {
    return result;
  }
  return result.dim() == 4 ? empty_in_layout_of(result, result.size(3))
                           : at::empty(result.sizes(), result.options());
}

void Rows::scatter(
    const at::Tensor& workspace,
    const at::Tensor& result,
    double fill) const {
  if (scattered_) {
    result.fill_(fill);
    copy(workspace, result, /*gather=*/false);
  }
}

void Rows::copy(const at::Tensor& from, const at::Tensor& to, bool gather)
    const {
  const at::Tensor source = with_four_axes(from);
  const at::Tensor target = with_four_axes(to);
  const Strides source_stride = strides_of(source);
  const Strides target_stride = strides_of(target);
  int64_t heads = source.size(1);
  int64_t width = source.size(3); // elements, dense
  const int64_t tokens = source.size(2);
  const int64_t element = source.element_size(); // bytes
  if (source_stride.head == width && target_stride.head == width) {
    width *= heads;
    heads = 1;
  }
  const auto* source_data = static_cast<const char*>(source.const_data_ptr());
  auto* target_data = static_cast<char*>(target.mutable_data_ptr());
  const int64_t* spans = spans_->const_data_ptr<int64_t>();
  const int64_t* order = order_->const_data_ptr<int64_t>();
  const int64_t grain = ceil_divide(32768, max_index(heads * width, 1));
  at::parallel_for(
      0, source.size(0) * tokens, grain, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          const int64_t row = n / tokens;
          const int64_t rank = n % tokens;
          const Span span = row_span(spans, row, tokens);
          if (rank >= span.length) {
            continue;
          }
          const int64_t scattered = order[n];
          const int64_t compact = span.start + rank;
          const char* read = source_data +
              element *
                  (row * source_stride.batch +
                   (gather ? scattered : compact) * source_stride.row);
          char* write = target_data +
              element *
                  (row * target_stride.batch +
                   (gather ? compact : scattered) * target_stride.row);
          for (int64_t head = 0; head < heads; ++head) {
            std::memcpy(
                write + element * head * target_stride.head,
                read + element * head * source_stride.head,
                element * width);
          }
        }
      });
}

} // namespace subquad
