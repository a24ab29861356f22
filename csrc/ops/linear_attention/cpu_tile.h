#pragma once

#include <ATen/OpMathType.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common/linear_attention.h"
#include "cpu/feature_map.h"
#include "cpu/micro_kernel.h"
#include "cpu/pack.h"

// How the CPU kernels of linear attention cut a row, and what they do with the
// tokens of one chunk.
namespace subquad {
inline namespace CPU_CAPABILITY {

// A row is walked in chunks; inside a chunk queries meet keys directly, before
// it there is the state. Sums of chunks are summed within segments first, and
// segments one after the other: the order of all additions follows from the
// place of a token in its row alone, so that segments can be computed at once
// or one by one with the same bits.
constexpr int64_t kChunk = 32;    // tokens
constexpr int64_t kSegment = 512; // tokens, about

// Chunks hold whole buckets or lie inside one.
class Cuts {
 public:
  explicit Cuts(int64_t blindspot)
      : blindspot_(blindspot),
        chunk_(blindspot < kChunk ? kChunk / blindspot * blindspot : kChunk) {
    const int64_t unit = max_index(blindspot, chunk_);
    segment_ = max_index(kSegment / unit, 1) * unit;
  }

  int64_t chunk_end(int64_t begin, int64_t length) const {
    int64_t end = begin + chunk_;
    if (blindspot_ >= kChunk) {
      end = min_index(end, (begin / blindspot_ + 1) * blindspot_);
    }
    return min_index(end, length);
  }

  // Whether queries from here on see all keys before here.
  bool complete(int64_t token) const {
    return token % blindspot_ == 0;
  }

  int64_t segment() const {
    return segment_;
  }

  int64_t segments(int64_t length) const {
    return ceil_divide(length, segment_);
  }

  // Most chunks of a segment.
  int64_t chunks() const {
    const int64_t buckets = max_index(segment_ / blindspot_, 1);
    return blindspot_ >= kChunk ? buckets * ceil_divide(blindspot_, chunk_)
                                : ceil_divide(segment_, chunk_);
  }

 private:
  int64_t blindspot_;
  int64_t chunk_;
  int64_t segment_;
};

// exp(before - after) where log scales do not decrease; nothing came before
// -inf.
template <typename acc_t>
inline acc_t decay(acc_t before, acc_t after) {
  if (before == after) {
    return acc_t(1);
  }
  return before == -std::numeric_limits<acc_t>::infinity()
      ? acc_t(0)
      : std::exp(before - after);
}

// What one row of one key head is, with pointers to its first token.
template <typename scalar_t>
struct Lane {
  using acc_t = at::opmath_type<scalar_t>;

  Lane(const LinearAttentionParams& params, int64_t index)
      : row(index / params.key_heads),
        key_head(index % params.key_heads),
        batch(params.packed ? 0 : row),
        queries(row_span(params.query_spans, row, params.query_length)),
        keys(row_span(params.key_spans, row, params.key_length)),
        key(static_cast<const scalar_t*>(params.key) +
            batch * params.key_stride.batch +
            key_head * params.key_stride.head +
            keys.start * params.key_stride.row),
        value(
            static_cast<const scalar_t*>(params.value) +
            batch * params.value_stride.batch +
            key_head * params.value_stride.head +
            keys.start * params.value_stride.row),
        key_weight(weights(
            params.key_weight,
            params.key_weight_stride,
            keys.start * params.key_rule.copies)),
        query_weight(weights(
            params.query_weight,
            params.query_weight_stride,
            queries.start * params.query_rule.copies)),
        log_scale(
            params.key_log_scale == nullptr
                ? nullptr
                : static_cast<const acc_t*>(params.key_log_scale) +
                    (batch * params.key_heads + key_head) * params.key_length +
                    keys.start),
        first_log_scale(first(params, index)) {}

  const acc_t* weights(const void* table, int64_t stride, int64_t offset)
      const {
    return table == nullptr
        ? nullptr
        : static_cast<const acc_t*>(table) + batch * stride + offset;
  }

  static acc_t first(const LinearAttentionParams& params, int64_t index) {
    if (params.new_state_log_scale == nullptr) {
      return acc_t(0);
    }
    return params.state_log_scale == nullptr
        ? -std::numeric_limits<acc_t>::infinity()
        : static_cast<const acc_t*>(params.state_log_scale)[index];
  }

  // The log scale that sums before token `n` are in.
  acc_t log_scale_before(int64_t n) const {
    return log_scale == nullptr || n == 0 ? first_log_scale : log_scale[n - 1];
  }

  int64_t query_head(const LinearAttentionParams& params, int64_t g) const {
    return key_head * (params.heads / params.key_heads) + g;
  }

  // First query of a head, in a tensor [B, H, L, .] with these strides.
  template <typename T>
  T* at_queries(T* data, const Strides& stride, int64_t head) const {
    return data + batch * stride.batch + head * stride.head +
        queries.start * stride.row;
  }

  // The same in a dense [B, H, L].
  template <typename T>
  T* at_query_lines(T* data, const LinearAttentionParams& params, int64_t head)
      const {
    return data + (batch * params.heads + head) * params.query_length +
        queries.start;
  }

  int64_t row;
  int64_t key_head;
  int64_t batch;
  Span queries;
  Span keys;
  const scalar_t* key;
  const scalar_t* value;
  const acc_t* key_weight;
  const acc_t* query_weight;
  const acc_t* log_scale; // null without
  acc_t first_log_scale;
};

// target = factor * a + b, all of `count` elements, whole vectors. A factor of
// 0 leaves nothing of a.
template <typename acc_t>
inline void combine(
    const acc_t* a,
    acc_t factor,
    const acc_t* b,
    int64_t count,
    acc_t* target) {
  if (factor == acc_t(0)) {
    std::copy(b, b + count, target);
    return;
  }
  const Vec<acc_t> scale(factor);
  for (int64_t i = 0; i < count; i += kLanes<acc_t>) {
    at::vec::fmadd(Vec<acc_t>::loadu(a + i), scale, Vec<acc_t>::loadu(b + i))
        .store(target + i);
  }
}

template <typename acc_t>
inline void scale_in_place(acc_t* data, int64_t count, acc_t factor) {
  if (factor == acc_t(1)) {
    return;
  }
  const Vec<acc_t> scale(factor);
  for (int64_t i = 0; i < count; i += kLanes<acc_t>) {
    (Vec<acc_t>::loadu(data + i) * scale).store(data + i);
  }
}

// target += factor * source, whole vectors.
template <typename acc_t>
inline void
add_scaled(const acc_t* source, acc_t factor, int64_t count, acc_t* target) {
  const Vec<acc_t> scale(factor);
  for (int64_t i = 0; i < count; i += kLanes<acc_t>) {
    at::vec::fmadd(
        Vec<acc_t>::loadu(source + i), scale, Vec<acc_t>::loadu(target + i))
        .store(target + i);
  }
}

// Of rows of whole vectors that end in zeros.
template <typename acc_t>
inline acc_t dot(const acc_t* a, const acc_t* b, int64_t count) {
  Vec<acc_t> sum(acc_t(0));
  for (int64_t i = 0; i < count; i += kLanes<acc_t>) {
    sum =
        at::vec::fmadd(Vec<acc_t>::loadu(a + i), Vec<acc_t>::loadu(b + i), sum);
  }
  return reduce_sum(sum);
}

// The pairs of a chunk: query i sees the keys [0, end(i)), which never shrinks.
struct Sight {
  int64_t blindspot;
  int64_t begin; // rank of the first token
  int64_t count; // tokens

  int64_t end(int64_t i) const {
    return max_index(
        min_index(
            causal_end(begin + i, blindspot, begin + count) - begin, count),
        0);
  }

  // The first query that sees key j; `count` if none does.
  int64_t first(int64_t j) const {
    if (blindspot == 1) {
      return j;
    }
    return min_index(((begin + j) / blindspot + 1) * blindspot - begin, count);
  }
};

// pairs[i][j] = a[i] . panels[j] for the keys that query i sees, 0 for the
// others up to the end of the vectors that are read later. `panels` are
// transposed keys, [F][kLanes] each.
template <typename acc_t>
inline void multiply_pairs(
    const Sight& sight,
    const acc_t* a,
    int64_t a_stride,
    int64_t depth,
    const acc_t* panels,
    acc_t* pairs,
    int64_t stride) {
  for (int64_t i = 0; i < sight.count; i += kTileRows) {
    const int64_t rows = min_index(sight.count - i, kTileRows);
    const int64_t end = sight.end(i + rows - 1);
    const int64_t vectors = ceil_divide(end, kLanes<acc_t>);
    multiply(
        rows,
        vectors,
        depth,
        a + i * a_stride,
        a_stride,
        int64_t{1},
        panels,
        kLanes<acc_t>,
        depth * kLanes<acc_t>,
        pairs + i * stride,
        stride,
        false);
    for (int64_t r = i; r < i + rows; ++r) {
      std::fill(
          pairs + r * stride + sight.end(r),
          pairs + r * stride + vectors * kLanes<acc_t>,
          acc_t(0));
    }
  }
}

// pairs[i][j] *= exp(m[j] - m[i])
template <typename acc_t>
inline void decay_pairs(
    const Sight& sight,
    const acc_t* log_scale,
    acc_t* pairs,
    int64_t stride) {
  if (log_scale[0] == log_scale[sight.count - 1]) {
    return;
  }
  for (int64_t i = 0; i < sight.count; ++i) {
    acc_t* row = pairs + i * stride;
    for (int64_t j = 0; j < sight.end(i); ++j) {
      row[j] *= decay(log_scale[j], log_scale[i]);
    }
  }
}

// result[i] += sum_j pairs[i][j] b[j] over the keys that query i sees. Where b
// is not finite, what is not seen must not be multiplied with the zeros.
template <typename acc_t>
inline void multiply_seen_keys(
    const Sight& sight,
    const acc_t* pairs,
    int64_t stride,
    const acc_t* b,
    int64_t b_stride,
    int64_t vectors,
    bool finite,
    acc_t* result,
    int64_t result_stride) {
  const int64_t step = finite ? kTileRows : 1;
  for (int64_t i = 0; i < sight.count; i += step) {
    const int64_t rows = min_index(sight.count - i, step);
    multiply(
        rows,
        vectors,
        sight.end(i + rows - 1),
        pairs + i * stride,
        stride,
        int64_t{1},
        b,
        b_stride,
        kLanes<acc_t>,
        result + i * result_stride,
        result_stride,
        true);
  }
}

// result[j] += sum_i pairs[i][j] b[i] over the queries that see key j.
template <typename acc_t>
inline void multiply_seen_by(
    const Sight& sight,
    const acc_t* pairs,
    int64_t stride,
    const acc_t* b,
    int64_t b_stride,
    int64_t vectors,
    bool finite,
    acc_t* result,
    int64_t result_stride) {
  const int64_t step = finite ? kTileRows : 1;
  for (int64_t j = 0; j < sight.count; j += step) {
    const int64_t rows = min_index(sight.count - j, step);
    const int64_t first = sight.first(j);
    multiply(
        rows,
        vectors,
        sight.count - first,
        pairs + first * stride + j,
        int64_t{1},
        stride,
        b + first * b_stride,
        b_stride,
        kLanes<acc_t>,
        result + j * result_stride,
        result_stride,
        true);
  }
}

// Transposed panels of packed rows, [ceil(rows / kLanes)][count][kLanes].
template <typename acc_t>
inline void pack_panels(
    const acc_t* source,
    int64_t stride,
    int64_t rows,
    int64_t count,
    acc_t* panels) {
  for (int64_t r = 0; r < rows; r += kLanes<acc_t>) {
    pack_panel(
        source + r * stride,
        stride,
        min_index(rows - r, kLanes<acc_t>),
        count,
        panels + r * count);
  }
}

// Lanes of a task so that it is worth a thread.
inline int64_t lane_grain(const LinearAttentionParams& params, int64_t tokens) {
  constexpr int64_t kWork = int64_t{1} << 19; // multiplications
  const int64_t work =
      max_index(tokens, 1) * params.features * (params.value_dim + kChunk);
  return ceil_divide(kWork, max_index(work, 1));
}

// The weight of token `begin`.
template <typename acc_t>
inline const acc_t*
offset_weight(const acc_t* weight, int64_t begin, const FeatureRule& rule) {
  return weight == nullptr ? nullptr : weight + begin * rule.copies;
}

// Features of the keys [begin, begin + count) of a lane, and their values.
template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
inline void load_keys(
    const LinearAttentionParams& params,
    const Lane<scalar_t>& lane,
    const FeatureTile<scalar_t>& features,
    int64_t begin,
    int64_t count,
    acc_t* keys,     // [count, features to whole vectors]
    acc_t* values) { // [count, M to whole vectors]
  features.load(
      lane.key + begin * params.key_stride.row,
      params.key_stride.row,
      offset_weight(lane.key_weight, begin, params.key_rule),
      count,
      keys,
      round_to_lanes<acc_t>(params.features));
  pack_rows(
      lane.value + begin * params.value_stride.row,
      params.value_stride.row,
      count,
      params.value_dim,
      values,
      round_to_lanes<acc_t>(params.value_dim));
}

// Features of the queries [begin, begin + count) of one head of a lane.
template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
inline void load_query_features(
    const LinearAttentionParams& params,
    const Lane<scalar_t>& lane,
    const FeatureTile<scalar_t>& features,
    int64_t head,
    int64_t begin,
    int64_t count,
    acc_t* queries) { // [count, features to whole vectors]
  const scalar_t* query = lane.at_queries(
      static_cast<const scalar_t*>(params.query), params.query_stride, head);
  features.load(
      query + begin * params.query_stride.row,
      params.query_stride.row,
      offset_weight(lane.query_weight, begin, params.query_rule),
      count,
      queries,
      round_to_lanes<acc_t>(params.features));
}

// 1 / max(denominator, floor); 0 where that is 0. NaN stays.
template <typename acc_t>
inline acc_t inverse_denominator(acc_t denominator, acc_t floor) {
  const acc_t bounded = denominator < floor ? floor : denominator;
  return bounded == acc_t(0) ? acc_t(0) : 1 / bounded;
}

} // namespace CPU_CAPABILITY
} // namespace subquad
