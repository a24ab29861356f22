#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>

// Rows of a batch as spans of valid tokens. Operators take `lengths` (with
// `starts`, or with an `order` of tokens that lie scattered) or packed
// `cu_seqlens`; kernels see one [R, 2] table of (start, length) pairs.
namespace subquad {

// Returns the table, or nothing when every row is the whole axis. `what` is
// "" or "query_" and prefixes the arguments' names in errors; `tensor`, called
// `tensor_name`, gives batch size and device, `tokens` the size of the axis.
// With an order the table counts ranks: every row starts at 0.
std::optional<at::Tensor> make_spans(
    const char* op,
    const char* what,
    const at::Tensor& tensor,
    const c10::SymInt& tokens,
    const std::optional<at::Tensor>& lengths,
    const std::optional<at::Tensor>& starts,
    const std::optional<at::Tensor>& cu_seqlens,
    const std::optional<at::Tensor>& order,
    const char* tensor_name = "query");

// Where an order puts the tokens of a row one after the other, the row becomes
// a span at its place, as on the CPU (see Rows); the other rows keep their
// order. Does not wait for the device. Without an order nothing changes.
void place_ordered_rows(
    std::optional<at::Tensor>& spans,
    std::optional<at::Tensor>& order);

// Refuses spans that leave [0, size). Reads the data: CPU tensors only.
void check_span_values(
    const char* op,
    const char* what,
    const std::optional<at::Tensor>& spans,
    int64_t size);

} // namespace subquad
