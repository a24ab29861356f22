#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>

#include "cpu/dropout.h"
#include "cpu/pack.h"
#include "ops/window_attention/cpu_tile.h"

// The backward pass of one tile of queries over one chunk of keys or summaries.
// Included by units that are compiled per instruction set, hence anonymous.
//
//   P  = exp(logit - lse)
//   dS = P o (dropout o (dO V^T) - delta),  delta = rowsum(dO o O) - dlse
//   dQ = scale dS K,  dK = dS^T (scale Q),  dV = (dropout o P)^T dO
//
// Masked elements of P and dS are zero, so that the products may run over the
// union of what neighbouring queries see. Zero times NaN is not zero: where an
// operand is not finite a product runs over exact ranges instead. Every sum is
// one chain of fused multiply-adds in the same order either way, and adding a
// zero product to it changes nothing, so that the rest keeps its bits.
namespace subquad {

namespace {

constexpr int64_t kBackwardQueries = 48; // at most kTileQueries
constexpr int64_t kBackwardKeys = 192;   // columns of a chunk

// What queries attend to: the keys of a row or its summaries.
template <typename scalar_t>
struct Columns {
  using acc_t = at::opmath_type<scalar_t>;

  MovingPack<scalar_t, true> key_panels;   // K^T
  MovingPack<scalar_t, true> value_panels; // V^T
  MovingPack<scalar_t, false> keys;

  Columns(int64_t span, int64_t head_dim, int64_t value_dim)
      : key_panels(span, head_dim),
        value_panels(span, value_dim),
        keys(span, head_dim) {}

  void reset(
      const scalar_t* key,
      int64_t key_stride,
      const scalar_t* value,
      int64_t value_stride,
      int64_t count) {
    key_panels.reset(key, key_stride, count);
    value_panels.reset(value, value_stride, count);
    keys.reset(key, key_stride, count);
  }

  void cover(const Range& range) {
    key_panels.cover(range.begin, range.end);
    value_panels.cover(range.begin, range.end);
    keys.cover(range.begin, range.end);
  }
};

// A table of vectors that logits are relative to, for one head. Keys read it
// forwards (slot = key - origin), summaries backwards (slot = limit - 1 - c).
template <typename acc_t>
struct RelativeTable {
  const acc_t* panels = nullptr; // [slots / kLanes][D][kLanes]
  const acc_t* rows = nullptr;   // [slots, D]
  acc_t* gradient = nullptr;     // [slots, D], null when not wanted
  bool finite = true;

  explicit operator bool() const {
    return panels != nullptr;
  }
};

// The optional terms of one head's logits.
template <typename scalar_t>
struct Terms {
  using acc_t = at::opmath_type<scalar_t>;

  const scalar_t* bias = nullptr;     // [block, slots]
  acc_t* grad_bias = nullptr;         // [block, slots]
  const scalar_t* key_bias = nullptr; // from the row's first key on
  acc_t* grad_key_bias = nullptr;     // from the row's first key on
  RelativeTable<acc_t> relative;
};

template <typename scalar_t>
class BackwardTile {
 public:
  using acc_t = at::opmath_type<scalar_t>;

  BackwardTile(
      const WindowAttentionParams& params,
      const WindowAttentionGradients& gradients)
      : params_(params),
        gradients_(gradients),
        scale_(static_cast<acc_t>(params.scale)),
        relative_(
            params.relative_key != nullptr ||
            params.summary_relative_key != nullptr),
        key_width_(round_to_lanes<acc_t>(params.head_dim)),
        value_width_(round_to_lanes<acc_t>(params.value_dim)),
        scaled_query_(kBackwardQueries * key_width_),
        query_(relative_ ? kBackwardQueries * key_width_ : 0),
        grad_output_(kBackwardQueries * value_width_),
        grad_query_(kBackwardQueries * key_width_),
        relative_grad_query_(relative_ ? kBackwardQueries * key_width_ : 0),
        weight_(kBackwardQueries * kPitch),
        grad_logit_(kBackwardQueries * kPitch),
        slots_(relative_ ? kBackwardQueries * kSlotPitch : 0) {}

  Tile& plan() {
    return tile_;
  }

  // Reads the queries of one head; rows without keys see nothing from here on.
  void load(const HeadRow& at);

  // Adds what the chunk of columns gives to dQ, dK, dV and the terms. `begin`
  // is a multiple of kLanes; `grad_key` and `grad_value` belong to column
  // `begin`.
  void run(
      const Columns<scalar_t>& columns,
      const Range& chunk,
      bool summaries,
      const Terms<scalar_t>& terms,
      acc_t* grad_key,
      acc_t* grad_value);

  void store_grad_query(const HeadRow& at) const;

 private:
  static constexpr int64_t kUnit = kLanes<acc_t>;
  // Rows of P and dS; off the powers of two that would share cache sets.
  static constexpr int64_t kPitch = kBackwardKeys + kUnit;
  static constexpr int64_t kSlotPitch =
      kBackwardKeys + 2 * kBackwardQueries + kUnit;
  // Rows of the register tiles of transposed products; divides kUnit.
  static constexpr int kUnitRows = kUnit % kTileRows == 0 ? kTileRows : 4;

  void logits(const Columns<scalar_t>& columns);
  void weights(const Terms<scalar_t>& terms, bool summaries);
  void weights_of_row(
      int64_t row,
      const Range& padded,
      const Terms<scalar_t>& terms,
      bool summaries);
  bool add_terms(int64_t row, const Terms<scalar_t>& terms, bool summaries);
  void query_gradient(const Columns<scalar_t>& columns);
  void transposed_product(
      const acc_t* left,
      const acc_t* right,
      int64_t width,
      bool finite,
      acc_t* result) const;

  Range slots_of(int64_t row, bool summaries) const;
  template <typename F>
  void for_each_slot_run(bool summaries, const F& body);
  void relative_logits(const RelativeTable<acc_t>& table, bool summaries);
  void relative_gradients(const RelativeTable<acc_t>& table, bool summaries);

  const Range& range(int64_t row) const {
    return range_[row];
  }

  const WindowAttentionParams& params_;
  const WindowAttentionGradients& gradients_;
  acc_t scale_;
  bool relative_;
  int64_t key_width_;
  int64_t value_width_;
  Scratch<acc_t> scaled_query_;        // [queries, D]
  Scratch<acc_t> query_;               // [queries, D], for the relative tables
  Scratch<acc_t> grad_output_;         // [queries, M]
  Scratch<acc_t> grad_query_;          // [queries, D], to be scaled
  Scratch<acc_t> relative_grad_query_; // [queries, D], not to be scaled
  Scratch<acc_t> weight_;              // [queries, columns]: logits, then P
  Scratch<acc_t> grad_logit_;          // [queries, columns]: dP, then dS
  Scratch<acc_t> slots_; // [queries, slots]: relative logits, then dS by slot

  Tile tile_;
  HeadRow at_{};
  acc_t lse_[kBackwardQueries];
  acc_t delta_[kBackwardQueries];
  bool query_finite_ = true;
  bool grad_output_finite_ = true;

  // Of the chunk at hand; ranges count from its first column.
  Range chunk_{};
  Range range_[kBackwardQueries];       // columns that a query sees
  Range group_range_[kBackwardQueries]; // union over a group
  int64_t slot_base_[kBackwardQueries]; // slot of a row's first in slots_
  acc_t added_[kBackwardKeys + kUnit];
  acc_t dropout_[kBackwardKeys + kUnit];
};

template <typename scalar_t>
void BackwardTile<scalar_t>::load(const HeadRow& at) {
  at_ = at;
  const int64_t D = params_.head_dim;
  const int64_t M = params_.value_dim;
  for (int64_t i = 0; i < tile_.count; ++i) {
    const int64_t index = tile_.begin + i;
    const scalar_t* query = vector_at<scalar_t>(
        params_.query, params_.query_stride, at.batch, at.head, index);
    load_row(query, D, scaled_query_.get() + i * key_width_, scale_);
    if (relative_) {
      load_row(query, D, query_.get() + i * key_width_);
    }
    acc_t* grad_output = grad_output_.get() + i * value_width_;
    load_row(
        vector_at<scalar_t>(
            gradients_.grad_output,
            gradients_.grad_output_stride,
            at.batch,
            at.head,
            index),
        M,
        grad_output);
    const scalar_t* output = vector_at<scalar_t>(
        params_.output, params_.output_stride, at.batch, at.head, index);
    Vec<acc_t> sum(acc_t(0));
    int64_t d = 0;
    for (; d + kUnit <= M; d += kUnit) {
      sum = at::vec::fmadd(
          load_vector(output + d), Vec<acc_t>::loadu(grad_output + d), sum);
    }
    if (d < M) {
      sum = at::vec::fmadd(
          load_partial(output + d, M - d),
          Vec<acc_t>::loadu(grad_output + d),
          sum);
    }
    const int64_t number =
        (at.batch * params_.heads + at.head) * params_.query_length + index;
    delta_[i] = reduce_sum(sum);
    if (gradients_.grad_logsumexp != nullptr) {
      delta_[i] -= static_cast<const acc_t*>(gradients_.grad_logsumexp)[number];
    }
    lse_[i] = static_cast<const acc_t*>(params_.logsumexp)[number];
  }
  query_finite_ =
      all_finite(scaled_query_.get(), key_width_, tile_.count, key_width_);
  grad_output_finite_ =
      all_finite(grad_output_.get(), value_width_, tile_.count, value_width_);
  std::fill_n(grad_query_.get(), tile_.count * key_width_, acc_t(0));
  if (relative_) {
    query_finite_ = query_finite_ &&
        all_finite(query_.get(), key_width_, tile_.count, key_width_);
    std::fill_n(relative_grad_query_.get(), tile_.count * key_width_, acc_t(0));
  }
}

template <typename scalar_t>
void BackwardTile<scalar_t>::store_grad_query(const HeadRow& at) const {
  for (int64_t i = 0; i < tile_.count; ++i) {
    acc_t* sum = grad_query_.get() + i * key_width_;
    acc_t factor = scale_;
    if (relative_) {
      const acc_t* other = relative_grad_query_.get() + i * key_width_;
      for (int64_t d = 0; d < key_width_; ++d) {
        sum[d] = sum[d] * scale_ + other[d];
      }
      factor = 1;
    }
    scalar_t* target = static_cast<scalar_t*>(gradients_.grad_query) +
        at.batch * gradients_.grad_query_stride.batch +
        at.head * gradients_.grad_query_stride.head +
        (tile_.begin + i) * gradients_.grad_query_stride.row;
    store_row(sum, params_.head_dim, target, factor);
  }
}

template <typename scalar_t>
void BackwardTile<scalar_t>::run(
    const Columns<scalar_t>& columns,
    const Range& chunk,
    bool summaries,
    const Terms<scalar_t>& terms,
    acc_t* grad_key,
    acc_t* grad_value) {
  chunk_ = chunk;
  for (int64_t i = 0; i < tile_.count; ++i) {
    const Range seen =
        summaries ? Range{0, tile_.sight[i].limit} : tile_.sight[i].keys;
    range_[i] = intersect(seen, chunk);
    range_[i].begin -= chunk.begin;
    range_[i].end -= chunk.begin;
    if (std::isinf(lse_[i]) && lse_[i] < 0) {
      range_[i].end = range_[i].begin;
    }
  }
  bool any = false;
  for (int64_t g = 0; g < tile_.groups; ++g) {
    const Group& group = tile_.group[g];
    group_range_[g] = {0, 0};
    for (int64_t i = group.begin; i < group.begin + group.count; ++i) {
      group_range_[g] = unite(group_range_[g], range_[i]);
    }
    any = any || !group_range_[g].empty();
  }
  if (!any) {
    return;
  }
  logits(columns);
  if (terms.relative) {
    relative_logits(terms.relative, summaries);
  }
  weights(terms, summaries);
  if (gradients_.grad_query != nullptr) {
    query_gradient(columns);
  }
  if (terms.relative) {
    relative_gradients(terms.relative, summaries);
  }
  if (grad_key != nullptr) {
    transposed_product(
        grad_logit_.get(),
        scaled_query_.get(),
        key_width_,
        query_finite_,
        grad_key);
  }
  if (grad_value != nullptr) {
    transposed_product(
        weight_.get(),
        grad_output_.get(),
        value_width_,
        grad_output_finite_,
        grad_value);
  }
}

// scale q . k and dO . v for every group over the units that it sees.
template <typename scalar_t>
void BackwardTile<scalar_t>::logits(const Columns<scalar_t>& columns) {
  const int64_t unit = chunk_.begin / kUnit;
  for (int64_t g = 0; g < tile_.groups; ++g) {
    const Range& seen = group_range_[g];
    if (seen.empty()) {
      continue;
    }
    const Group& group = tile_.group[g];
    const int64_t first = seen.begin / kUnit;
    const int64_t vectors = ceil_divide(seen.end, kUnit) - first;
    multiply(
        group.count,
        vectors,
        params_.head_dim,
        scaled_query_.get() + group.begin * key_width_,
        key_width_,
        int64_t{1},
        columns.key_panels.unit(unit + first),
        kUnit,
        columns.key_panels.unit_size(),
        weight_.get() + group.begin * kPitch + first * kUnit,
        kPitch,
        false);
    multiply(
        group.count,
        vectors,
        params_.value_dim,
        grad_output_.get() + group.begin * value_width_,
        value_width_,
        int64_t{1},
        columns.value_panels.unit(unit + first),
        kUnit,
        columns.value_panels.unit_size(),
        grad_logit_.get() + group.begin * kPitch + first * kUnit,
        kPitch,
        false);
  }
}

template <typename scalar_t>
void BackwardTile<scalar_t>::weights(
    const Terms<scalar_t>& terms,
    bool summaries) {
  for (int64_t g = 0; g < tile_.groups; ++g) {
    if (group_range_[g].empty()) {
      continue;
    }
    const Range padded{
        group_range_[g].begin / kUnit * kUnit,
        round_to_lanes<acc_t>(group_range_[g].end)};
    const Group& group = tile_.group[g];
    for (int64_t i = group.begin; i < group.begin + group.count; ++i) {
      weights_of_row(i, padded, terms, summaries);
    }
  }
}

// Logits to weights and gradients of the logits; zeros where nothing is seen.
template <typename scalar_t>
void BackwardTile<scalar_t>::weights_of_row(
    int64_t row,
    const Range& padded,
    const Terms<scalar_t>& terms,
    bool summaries) {
  const Range seen = range(row);
  acc_t* weight = weight_.get() + row * kPitch;
  acc_t* grad_logit = grad_logit_.get() + row * kPitch;
  const Vec<acc_t> zero(acc_t(0));
  const bool added = !seen.empty() && add_terms(row, terms, summaries);
  const bool dropped = !seen.empty() && params_.dropout_state != nullptr;
  if (dropped) {
    const int64_t column = (summaries ? params_.key_length : at_.keys.start) +
        chunk_.begin + seen.begin;
    std::fill(dropout_ + seen.begin, dropout_ + seen.end, acc_t(1));
    drop_weights(
        Dropout{
            params_.dropout,
            static_cast<uint64_t>(params_.dropout_state[0]),
            static_cast<uint64_t>(params_.dropout_state[1])},
        weight_index(params_, at_.batch, at_.head, tile_.begin + row, column),
        size_of(seen),
        static_cast<acc_t>(1.0 / (1.0 - params_.dropout)),
        dropout_ + seen.begin);
  }
  const Vec<acc_t> lse(lse_[row]);
  const Vec<acc_t> delta(delta_[row]);
  const auto unit = [&](int64_t x, const auto& select) {
    Vec<acc_t> logit = Vec<acc_t>::loadu(weight + x);
    if (added) {
      logit = logit + Vec<acc_t>::loadu(added_ + x);
    }
    const Vec<acc_t> p = exponential(logit - lse);
    Vec<acc_t> grad = Vec<acc_t>::loadu(grad_logit + x);
    Vec<acc_t> kept = p;
    if (dropped) {
      const Vec<acc_t> factor = Vec<acc_t>::loadu(dropout_ + x);
      grad = grad * factor;
      kept = p * factor;
    }
    select(kept).store(weight + x);
    select(p * (grad - delta)).store(grad_logit + x);
  };
  for (int64_t x = padded.begin; x < padded.end; x += kUnit) {
    if (x >= seen.begin && x + kUnit <= seen.end) {
      unit(x, [](const Vec<acc_t>& y) { return y; });
    } else if (x + kUnit <= seen.begin || x >= seen.end) {
      zero.store(weight + x);
      zero.store(grad_logit + x);
    } else {
      const auto lane = Vec<acc_t>::arange(static_cast<acc_t>(x), acc_t(1));
      const auto mask = (lane >= Vec<acc_t>(static_cast<acc_t>(seen.begin))) &
          (lane < Vec<acc_t>(static_cast<acc_t>(seen.end)));
      unit(x, [&](const Vec<acc_t>& y) {
        return Vec<acc_t>::blendv(zero, y, mask);
      });
    }
  }
  if (seen.empty()) {
    return;
  }
  if (!summaries && terms.grad_bias != nullptr) {
    const Sight& sight = tile_.sight[row];
    add_row(
        grad_logit + seen.begin,
        size_of(seen),
        terms.grad_bias + sight.line * window_slots(params_.window) +
            chunk_.begin + seen.begin - sight.origin);
  }
  if (!summaries && terms.grad_key_bias != nullptr) {
    add_row(
        grad_logit + seen.begin,
        size_of(seen),
        terms.grad_key_bias + chunk_.begin + seen.begin);
  }
}

// The sum of the optional terms of a row's logits; false when there are none.
template <typename scalar_t>
bool BackwardTile<scalar_t>::add_terms(
    int64_t row,
    const Terms<scalar_t>& terms,
    bool summaries) {
  const bool bias = !summaries && terms.bias != nullptr;
  const bool key_bias = !summaries && terms.key_bias != nullptr;
  if (!bias && !key_bias && !terms.relative) {
    return false;
  }
  const Range seen = range(row);
  const int64_t count = size_of(seen);
  acc_t* sum = added_ + seen.begin;
  std::fill_n(sum, count, acc_t(0));
  const int64_t column = chunk_.begin + seen.begin;
  if (bias) {
    const Sight& sight = tile_.sight[row];
    add_row(
        terms.bias + sight.line * window_slots(params_.window) + column -
            sight.origin,
        count,
        sum);
  }
  if (key_bias) {
    add_row(terms.key_bias + column, count, sum);
  }
  if (terms.relative) {
    const acc_t* slots = slots_.get() + row * kSlotPitch;
    slots += slots_of(row, summaries).begin - slot_base_[row];
    if (summaries) {
      for (int64_t n = 0; n < count; ++n) {
        sum[n] += slots[count - 1 - n];
      }
    } else {
      add_row(slots, count, sum);
    }
  }
  return true;
}

template <typename scalar_t>
void BackwardTile<scalar_t>::query_gradient(const Columns<scalar_t>& columns) {
  const int64_t vectors = key_width_ / kUnit;
  const auto product = [&](int64_t row, int64_t rows, const Range& seen) {
    multiply(
        rows,
        vectors,
        size_of(seen),
        grad_logit_.get() + row * kPitch + seen.begin,
        kPitch,
        int64_t{1},
        columns.keys.row(chunk_.begin + seen.begin),
        columns.keys.stride(),
        kUnit,
        grad_query_.get() + row * key_width_,
        key_width_,
        true);
  };
  const bool finite = all_finite(
      columns.keys.row(chunk_.begin),
      columns.keys.stride(),
      size_of(chunk_),
      key_width_);
  for (int64_t g = 0; g < tile_.groups; ++g) {
    const Group& group = tile_.group[g];
    if (finite) {
      product(group.begin, group.count, group_range_[g]);
      continue;
    }
    for (int64_t i = group.begin; i < group.begin + group.count; ++i) {
      product(i, 1, range(i));
    }
  }
}

// result[x] += sum over the queries i that see column x of left[i][x] right[i].
template <typename scalar_t>
void BackwardTile<scalar_t>::transposed_product(
    const acc_t* left,
    const acc_t* right,
    int64_t width,
    bool finite,
    acc_t* result) const {
  const int64_t vectors = width / kUnit;
  if (!finite) {
    for (int64_t i = 0; i < tile_.count; ++i) {
      const Range& seen = range(i);
      multiply(
          size_of(seen),
          vectors,
          int64_t{1},
          left + i * kPitch + seen.begin,
          int64_t{1},
          kPitch,
          right + i * width,
          width,
          kUnit,
          result + seen.begin * width,
          width,
          true);
    }
    return;
  }
  // A unit of columns at a time, over the runs of groups that see some of it.
  for (int64_t x = 0; x < size_of(chunk_); x += kUnit) {
    for (int64_t g = 0; g < tile_.groups;) {
      const auto sees = [&](int64_t index) {
        const Range& seen = group_range_[index];
        return !seen.empty() && seen.begin < x + kUnit && seen.end > x;
      };
      if (!sees(g)) {
        ++g;
        continue;
      }
      const int64_t row = tile_.group[g].begin;
      int64_t rows = 0;
      for (; g < tile_.groups && sees(g); ++g) {
        rows += tile_.group[g].count;
      }
      for (int64_t part = x; part < x + kUnit; part += kUnitRows) {
        multiply_rows<acc_t, kUnitRows>(
            vectors,
            rows,
            left + row * kPitch + part,
            int64_t{1},
            kPitch,
            right + row * width,
            width,
            kUnit,
            result + part * width,
            width,
            true);
      }
    }
  }
}

// The slots of the relative table that a row reads, in ascending order.
template <typename scalar_t>
Range BackwardTile<scalar_t>::slots_of(int64_t row, bool summaries) const {
  const Sight& sight = tile_.sight[row];
  const Range& seen = range(row);
  const int64_t begin = chunk_.begin + seen.begin;
  const int64_t end = chunk_.begin + seen.end;
  return summaries ? Range{sight.limit - end, sight.limit - begin}
                   : Range{begin - sight.origin, end - sight.origin};
}

// Calls body(first row, rows, slots) for runs of rows whose slots fit slots_
// from slot_base_ on.
template <typename scalar_t>
template <typename F>
void BackwardTile<scalar_t>::for_each_slot_run(bool summaries, const F& body) {
  int64_t row = 0;
  while (row < tile_.count) {
    Range slots{0, 0};
    int64_t end = row;
    for (; end < tile_.count; ++end) {
      const Range more =
          range(end).empty() ? slots : unite(slots, slots_of(end, summaries));
      if (round_to_lanes<acc_t>(more.end) - more.begin / kUnit * kUnit >
          kSlotPitch) {
        break;
      }
      slots = more;
    }
    if (!slots.empty()) {
      std::fill(
          slot_base_ + row, slot_base_ + end, slots.begin / kUnit * kUnit);
      body(row, end - row, slots);
    }
    row = end;
  }
}

template <typename scalar_t>
void BackwardTile<scalar_t>::relative_logits(
    const RelativeTable<acc_t>& table,
    bool summaries) {
  const int64_t D = params_.head_dim;
  for_each_slot_run(
      summaries, [&](int64_t row, int64_t rows, const Range& slots) {
        const int64_t base = slot_base_[row];
        multiply(
            rows,
            ceil_divide(slots.end - base, kUnit),
            D,
            query_.get() + row * key_width_,
            key_width_,
            int64_t{1},
            table.panels + base * D,
            kUnit,
            kUnit * D,
            slots_.get() + row * kSlotPitch,
            kSlotPitch,
            false);
      });
}

template <typename scalar_t>
void BackwardTile<scalar_t>::relative_gradients(
    const RelativeTable<acc_t>& table,
    bool summaries) {
  const int64_t vectors = key_width_ / kUnit;
  // dQ of rows, and d table of the slots that they read.
  const auto query_product =
      [&](int64_t row, int64_t rows, const Range& slots) {
        multiply(
            rows,
            vectors,
            size_of(slots),
            slots_.get() + row * kSlotPitch + slots.begin - slot_base_[row],
            kSlotPitch,
            int64_t{1},
            table.rows + slots.begin * key_width_,
            key_width_,
            kUnit,
            relative_grad_query_.get() + row * key_width_,
            key_width_,
            true);
      };
  const auto table_product =
      [&](int64_t row, int64_t rows, const Range& slots) {
        multiply(
            size_of(slots),
            vectors,
            rows,
            slots_.get() + row * kSlotPitch + slots.begin - slot_base_[row],
            int64_t{1},
            kSlotPitch,
            query_.get() + row * key_width_,
            key_width_,
            kUnit,
            table.gradient + slots.begin * key_width_,
            key_width_,
            true);
      };
  const auto by_row = [&](int64_t row, int64_t rows, const auto& product) {
    for (int64_t i = row; i < row + rows; ++i) {
      if (!range(i).empty()) {
        product(i, int64_t{1}, slots_of(i, summaries));
      }
    }
  };
  for_each_slot_run(
      summaries, [&](int64_t row, int64_t rows, const Range& slots) {
        for (int64_t i = row; i < row + rows; ++i) {
          acc_t* line = slots_.get() + i * kSlotPitch;
          std::fill_n(line, slots.end - slot_base_[row], acc_t(0));
          const Range& seen = range(i);
          if (seen.empty()) {
            continue;
          }
          line += slots_of(i, summaries).begin - slot_base_[row];
          const acc_t* source = grad_logit_.get() + i * kPitch;
          if (summaries) {
            std::reverse_copy(source + seen.begin, source + seen.end, line);
          } else {
            std::copy(source + seen.begin, source + seen.end, line);
          }
        }
        if (gradients_.grad_query != nullptr) {
          if (table.finite) {
            query_product(row, rows, slots);
          } else {
            by_row(row, rows, query_product);
          }
        }
        if (table.gradient != nullptr) {
          if (query_finite_) {
            table_product(row, rows, slots);
          } else {
            by_row(row, rows, table_product);
          }
        }
      });
}

} // namespace

} // namespace subquad
