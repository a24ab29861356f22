#pragma once

#include <cstdint>

#include "common/macros.h"

// Index arithmetic of the operators: which keys and summaries a query sees.
// Positions and key indices count from the start of the row's span of valid
// tokens; every range is half-open.
namespace subquad {

// Positions, offsets and extents of windows are refused beyond these, so that
// sums and products below stay far inside int64_t.
constexpr int64_t kMostTokens = int64_t{1} << 40;
constexpr int64_t kMostSummariesPerBlock = int64_t{1} << 20;

SUBQUAD_HOST_DEVICE inline int64_t min_index(int64_t a, int64_t b) {
  return a < b ? a : b;
}

SUBQUAD_HOST_DEVICE inline int64_t max_index(int64_t a, int64_t b) {
  return a < b ? b : a;
}

// Rounds towards minus infinity, so that positions before the first token
// (a negative query offset) fall into blocks of the full size too.
SUBQUAD_HOST_DEVICE inline int64_t floor_divide(int64_t a, int64_t b) {
  const int64_t quotient = a / b;
  return quotient * b > a ? quotient - 1 : quotient;
}

SUBQUAD_HOST_DEVICE inline int64_t ceil_divide(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// The valid tokens of one row: indices [start, start + length) of the tensor.
struct Span {
  int64_t start;
  int64_t length;
};

// Row of a [R, 2] table of spans; without a table every row is the whole axis.
SUBQUAD_HOST_DEVICE inline Span
row_span(const int64_t* spans, int64_t row, int64_t length) {
  return spans == nullptr ? Span{0, length}
                          : Span{spans[2 * row], spans[2 * row + 1]};
}

// On a CUDA device the values of spans and orders cannot be checked without
// waiting for it. Kernels there use the following readings, which keep wrong
// values inside the tensors; right values pass unchanged.
SUBQUAD_HOST_DEVICE inline Span
clamped_row_span(const int64_t* spans, int64_t row, int64_t size) {
  const Span span = row_span(spans, row, size);
  const int64_t start = max_index(min_index(span.start, size), 0);
  return {start, max_index(min_index(span.length, size - start), 0)};
}

// The token of rank `rank` of a batch entry, ranks counted from the start of
// the axis; without an order rank and token are one.
SUBQUAD_HOST_DEVICE inline int64_t clamped_token(
    const int64_t* order,
    int64_t stride,
    int64_t batch,
    int64_t rank,
    int64_t size) {
  if (order == nullptr) {
    return rank;
  }
  return max_index(min_index(order[batch * stride + rank], size - 1), 0);
}

struct Range {
  int64_t begin;
  int64_t end;

  SUBQUAD_HOST_DEVICE bool empty() const {
    return begin >= end;
  }
};

// A query at position p belongs to the block that starts at
// b = floor(p / block) * block and sees the keys [b - left, b + block + right),
// up to and including p when causal.
struct WindowRule {
  int64_t block;
  int64_t left;
  int64_t right;
  bool causal;
};

SUBQUAD_HOST_DEVICE inline int64_t block_begin(
    int64_t position,
    const WindowRule& rule) {
  return floor_divide(position, rule.block) * rule.block;
}

// The number of distinct (key - first key of the window) offsets.
SUBQUAD_HOST_DEVICE inline int64_t window_slots(const WindowRule& rule) {
  return rule.left + rule.block + rule.right;
}

// Slot 0 of a query's window, as a key index; it may lie before the row.
SUBQUAD_HOST_DEVICE inline int64_t window_origin(
    int64_t position,
    const WindowRule& rule) {
  return block_begin(position, rule) - rule.left;
}

// Keys that a query at `position`, in the block that begins at `first`, sees in
// a row of `length` keys. An empty range is returned as [x, x) with
// 0 <= x <= length, so that unions stay tight.
SUBQUAD_HOST_DEVICE inline Range block_keys(
    int64_t position,
    int64_t first,
    const WindowRule& rule,
    int64_t length) {
  int64_t end = first + rule.block + rule.right;
  if (rule.causal) {
    end = min_index(end, position + 1);
  }
  end = max_index(min_index(end, length), 0);
  const int64_t begin = max_index(first - rule.left, 0);
  return {min_index(begin, end), end};
}

SUBQUAD_HOST_DEVICE inline Range
window_keys(int64_t position, const WindowRule& rule, int64_t length) {
  return block_keys(position, block_begin(position, rule), rule, length);
}

// Positions that see `key` if it is in the row; they are never none.
SUBQUAD_HOST_DEVICE inline Range window_queries(
    int64_t key,
    const WindowRule& rule) {
  const int64_t first = block_begin(key - rule.right, rule);
  const int64_t last = block_begin(key + rule.left, rule);
  return {rule.causal ? max_index(first, key) : first, last + rule.block};
}

// Summaries are vectors that stand for many tokens (landmarks, pooled chunks).
// `block` = 0 shows all of them to every query; otherwise a query at position p
// sees the first offset + floor(p / block) * per_block of them.
struct SummaryRule {
  int64_t offset;
  int64_t block;
  int64_t per_block;
};

SUBQUAD_HOST_DEVICE inline int64_t
summary_limit(int64_t position, const SummaryRule& rule, int64_t count) {
  if (rule.block == 0) {
    return count;
  }
  const int64_t limit =
      rule.offset + floor_divide(position, rule.block) * rule.per_block;
  return max_index(min_index(limit, count), 0);
}

// No position before this one sees summary `index`; with per_block > 0 all from
// here on do, and INT64_MIN stands for all positions.
SUBQUAD_HOST_DEVICE inline int64_t first_summary_query(
    int64_t index,
    const SummaryRule& rule) {
  if (rule.block == 0 || rule.per_block <= 0) {
    return INT64_MIN;
  }
  return (floor_divide(index - rule.offset, rule.per_block) + 1) * rule.block;
}

} // namespace subquad
