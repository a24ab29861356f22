#pragma once

#include <ATen/OpMathType.h>

#include <cmath>
#include <limits>

#include "common/window_attention.h"

// Row-exact access to window attention: each query over exactly what it sees.
// Included by units that are compiled per instruction set, hence anonymous.
namespace subquad {

namespace {

// One query head of one row.
struct HeadRow {
  int64_t batch;
  int64_t row;
  int64_t head;
  int64_t key_head;
  Span queries;
  Span keys;
  int64_t summaries;
};

inline HeadRow
head_row(const WindowAttentionParams& params, int64_t row, int64_t head) {
  return {
      params.packed ? 0 : row,
      row,
      head,
      head / (params.heads / params.key_heads),
      row_span(params.query_spans, row, params.query_length),
      row_span(params.key_spans, row, params.key_length),
      params.summary_lengths == nullptr ? params.summaries
                                        : params.summary_lengths[row]};
}

// What query `index` (on the tensor's axis) sees.
struct Sight {
  int64_t line;   // of the bias
  int64_t origin; // key index of slot 0
  Range keys;     // within the row
  int64_t limit;  // summaries
};

inline Sight sight_of(
    const WindowAttentionParams& params,
    const HeadRow& at,
    int64_t index) {
  const int64_t position =
      query_position(params, at.batch, at.queries.start, index);
  return {
      position - block_begin(position, params.window),
      window_origin(position, params.window),
      window_keys(position, params.window, at.keys.length),
      summary_limit(position, params.summary, at.summaries)};
}

template <typename scalar_t>
const scalar_t* vector_at(
    const void* data,
    const Strides& stride,
    int64_t batch,
    int64_t head,
    int64_t index) {
  return static_cast<const scalar_t*>(data) + batch * stride.batch +
      head * stride.head + index * stride.row;
}

template <typename acc_t, typename scalar_t>
acc_t dot(const scalar_t* a, const scalar_t* b, int64_t n) {
  acc_t sum = 0;
  for (int64_t d = 0; d < n; ++d) {
    sum += static_cast<acc_t>(a[d]) * static_cast<acc_t>(b[d]);
  }
  return sum;
}

// Logits of the keys, then of the summaries.
template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
void logits_of(
    const WindowAttentionParams& params,
    const HeadRow& at,
    const Sight& sight,
    int64_t index,
    acc_t* logits) {
  const int64_t D = params.head_dim;
  const int64_t slots = window_slots(params.window);
  const acc_t scale = static_cast<acc_t>(params.scale);
  const scalar_t* query = vector_at<scalar_t>(
      params.query, params.query_stride, at.batch, at.head, index);
  const auto* bias = static_cast<const scalar_t*>(params.bias);
  const auto* key_bias = static_cast<const scalar_t*>(params.key_bias);
  const auto* relative = static_cast<const scalar_t*>(params.relative_key);
  for (int64_t j = sight.keys.begin; j < sight.keys.end; ++j) {
    const int64_t token = at.keys.start + j;
    const int64_t slot = j - sight.origin;
    acc_t logit =
        scale *
        dot<acc_t>(
            query,
            vector_at<scalar_t>(
                params.key, params.key_stride, at.batch, at.key_head, token),
            D);
    if (bias != nullptr) {
      logit += static_cast<acc_t>(
          bias[at.head * params.bias_head_stride + sight.line * slots + slot]);
    }
    if (key_bias != nullptr) {
      logit +=
          static_cast<acc_t>(key_bias[at.batch * params.key_length + token]);
    }
    if (relative != nullptr) {
      logit += dot<acc_t>(
          query,
          relative + at.head * params.relative_key_head_stride + slot * D,
          D);
    }
    *logits++ = logit;
  }
  const auto* summary_relative =
      static_cast<const scalar_t*>(params.summary_relative_key);
  for (int64_t c = 0; c < sight.limit; ++c) {
    acc_t logit = scale *
        dot<acc_t>(query,
                   vector_at<scalar_t>(
                       params.summary_key,
                       params.summary_key_stride,
                       at.row,
                       at.key_head,
                       c),
                   D);
    if (summary_relative != nullptr) {
      logit += dot<acc_t>(
          query,
          summary_relative + at.head * params.summary_relative_key_head_stride +
              (sight.limit - 1 - c) * D,
          D);
    }
    *logits++ = logit;
  }
}

} // namespace

} // namespace subquad
