#pragma once

#include <ATen/OpMathType.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

#include "cpu/micro_kernel.h"

// Conversion to the accumulation type on the way into packed, cache-aligned
// scratch memory, and back. Included by units that are compiled once per
// instruction set, hence the inline namespace.
namespace subquad {
inline namespace CPU_CAPABILITY {

// Uninitialised memory on a cache line boundary.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(static_cast<T*>(::operator new(
            static_cast<size_t>(count) * sizeof(T),
            kAlignment))) {}

  T* get() const {
    return data_.get();
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* data) const {
      ::operator delete(data, kAlignment);
    }
  };
  std::unique_ptr<T, Free> data_;
};

// `count` elements at `source` as a vector, zeros after them.
template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
inline Vec<acc_t> load_partial(const scalar_t* source, int64_t count) {
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    return Vec<acc_t>::loadu(source, count);
  } else {
    acc_t lanes[kLanes<acc_t>] = {};
    for (int64_t i = 0; i < count; ++i) {
      lanes[i] = static_cast<acc_t>(source[i]);
    }
    return Vec<acc_t>::loadu(lanes);
  }
}

// A full vector.
template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
inline Vec<acc_t> load_vector(const scalar_t* source) {
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    return Vec<acc_t>::loadu(source);
  } else {
    Vec<float> result;
    at::vec::load_to_float<scalar_t>(source, result);
    return result;
  }
}

template <typename scalar_t, typename acc_t>
inline void
store_partial(scalar_t* target, const Vec<acc_t>& x, int64_t count) {
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    x.store(target, count);
  } else {
    at::vec::convert_from_float<scalar_t>(x, x).store(target, count);
  }
}

// target[i] = factor * source[i] for i < count, then zeros to the end of the
// last vector.
template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
inline void load_row(
    const scalar_t* source,
    int64_t count,
    acc_t* target,
    acc_t factor = acc_t(1)) {
  const Vec<acc_t> scale(factor);
  int64_t i = 0;
  for (; i + kLanes<acc_t> <= count; i += kLanes<acc_t>) {
    (load_vector(source + i) * scale).store(target + i);
  }
  if (i < count) {
    (load_partial(source + i, count - i) * scale).store(target + i);
  }
}

// target[i] = factor * source[i] for i < count; source is read to the end of
// its last vector.
template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
inline void store_row(
    const acc_t* source,
    int64_t count,
    scalar_t* target,
    acc_t factor = acc_t(1)) {
  const Vec<acc_t> scale(factor);
  for (int64_t i = 0; i < count; i += kLanes<acc_t>) {
    store_partial(
        target + i,
        Vec<acc_t>::loadu(source + i) * scale,
        min_index(count - i, kLanes<acc_t>));
  }
}

// target[i] += source[i] for i < count, touching nothing else.
template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
inline void add_row(const scalar_t* source, int64_t count, acc_t* target) {
  int64_t i = 0;
  for (; i + kLanes<acc_t> <= count; i += kLanes<acc_t>) {
    (Vec<acc_t>::loadu(target + i) + load_vector(source + i)).store(target + i);
  }
  for (; i < count; ++i) {
    target[i] += static_cast<acc_t>(source[i]);
  }
}

// Whether no element of [rows, count] is NaN or infinite.
template <typename acc_t>
inline bool
all_finite(const acc_t* data, int64_t row_stride, int64_t rows, int64_t count) {
  const Vec<acc_t> zero(acc_t(0));
  // Several sums, to hide the latency of an addition.
  Vec<acc_t> sum[4] = {zero, zero, zero, zero};
  acc_t rest = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const acc_t* row = data + r * row_stride;
    int64_t i = 0;
    for (; i + 4 * kLanes<acc_t> <= count; i += 4 * kLanes<acc_t>) {
      SUBQUAD_UNROLL
      for (int64_t s = 0; s < 4; ++s) {
        sum[s] = at::vec::fmadd(
            Vec<acc_t>::loadu(row + i + s * kLanes<acc_t>), zero, sum[s]);
      }
    }
    for (; i + kLanes<acc_t> <= count; i += kLanes<acc_t>) {
      sum[0] = at::vec::fmadd(Vec<acc_t>::loadu(row + i), zero, sum[0]);
    }
    for (; i < count; ++i) {
      rest += row[i] * acc_t(0);
    }
  }
  return rest + reduce_sum((sum[0] + sum[1]) + (sum[2] + sum[3])) == 0;
}

// Packed rows: target[r][i] = source[r][i], `stride` elements from row to row
// of the target; what lies between `count` and round_to_lanes(count) is zero.
template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
inline void pack_rows(
    const scalar_t* source,
    int64_t source_stride,
    int64_t rows,
    int64_t count,
    acc_t* target,
    int64_t stride,
    acc_t factor = acc_t(1)) {
  for (int64_t r = 0; r < rows; ++r) {
    load_row(source + r * source_stride, count, target + r * stride, factor);
  }
}

// A transposed panel of up to kLanes rows: target[i][r] = source[r][i] for
// i < count, kLanes elements from i to i + 1; absent rows are zero.
template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
inline void pack_panel(
    const scalar_t* source,
    int64_t source_stride,
    int64_t rows,
    int64_t count,
    acc_t* target) {
  constexpr int64_t lanes = kLanes<acc_t>;
  int64_t i = 0;
  if (rows == lanes) {
    for (; i + lanes <= count; i += lanes) {
      if constexpr (std::is_same_v<scalar_t, acc_t>) {
        at::vec::transpose_mxn<acc_t, lanes, lanes>(
            source + i, source_stride, target + i * lanes, lanes);
      } else {
        acc_t block[lanes * lanes];
        for (int64_t r = 0; r < lanes; ++r) {
          load_vector(source + r * source_stride + i).store(block + r * lanes);
        }
        at::vec::transpose_mxn<acc_t, lanes, lanes>(
            block, lanes, target + i * lanes, lanes);
      }
    }
  }
  for (; i < count; ++i) {
    for (int64_t r = 0; r < lanes; ++r) {
      target[i * lanes + r] = r < rows
          ? static_cast<acc_t>(source[r * source_stride + i])
          : acc_t(0);
    }
  }
}

// The rows of a matrix that a moving range of them needs, packed; what stays in
// range stays packed. Rows are handled in units of kLanes, so that a unit is a
// panel when `transposed`.
template <typename scalar_t, bool transposed>
class MovingPack {
 public:
  using acc_t = at::opmath_type<scalar_t>;
  static constexpr int64_t kUnit = kLanes<acc_t>;
  static constexpr int64_t kAhead = 2; // units

  // For ranges of up to `rows` rows (at any place) of `count` elements.
  MovingPack(int64_t rows, int64_t count)
      : count_(count),
        stride_(transposed ? kUnit : round_to_lanes<acc_t>(count)),
        unit_size_(transposed ? count * kUnit : kUnit * stride_),
        // Twice the range, so that data moves once per full range at most.
        capacity_(2 * (ceil_divide(rows, kUnit) + 1)),
        scratch_(capacity_ * unit_size_) {}

  // Another matrix, of `rows` rows, `row_stride` elements apart.
  void reset(const scalar_t* source, int64_t row_stride, int64_t rows) {
    source_ = source;
    row_stride_ = row_stride;
    rows_ = rows;
    base_ = begin_ = end_ = 0;
  }

  // Packs what the rows [begin, end) still lack.
  void cover(int64_t begin, int64_t end) {
    const int64_t first = begin / kUnit;
    const int64_t last = ceil_divide(end, kUnit);
    if (first < begin_ || first > end_) {
      base_ = begin_ = end_ = first;
    }
    if (last > base_ + capacity_) {
      std::copy(unit(first), unit(end_), scratch_.get());
      base_ = begin_ = first;
    }
    for (; end_ < last; ++end_) {
      pack(end_);
    }
  }

  // First element of unit `index`: [count][kUnit] when transposed, else
  // [kUnit][stride]; the next unit follows it.
  acc_t* unit(int64_t index) const {
    return scratch_.get() + (index - base_) * unit_size_;
  }

  // Row `index`, not transposed.
  const acc_t* row(int64_t index) const {
    return unit(0) + index * stride_;
  }

  // Elements from one row to the next (of count, when transposed).
  int64_t stride() const {
    return stride_;
  }

  // Elements from one unit to the next.
  int64_t unit_size() const {
    return unit_size_;
  }

 private:
  void pack(int64_t index) {
    const int64_t begin = index * kUnit;
    const int64_t rows = min_index(rows_ - begin, kUnit);
    const scalar_t* source = source_ + begin * row_stride_;
    // What a sliding window will want next; rows of a projection seen as heads
    // lie too far apart for the hardware to foresee.
    const int64_t ahead = begin + kAhead * kUnit;
    for (int64_t r = ahead; r < min_index(ahead + kUnit, rows_); ++r) {
      prefetch(
          source_ + r * row_stride_,
          count_ * static_cast<int64_t>(sizeof(scalar_t)));
    }
    if constexpr (transposed) {
      pack_panel(source, row_stride_, rows, count_, unit(index));
    } else {
      pack_rows(source, row_stride_, rows, count_, unit(index), stride_);
    }
  }

  int64_t count_;
  int64_t stride_;
  int64_t unit_size_;
  int64_t capacity_; // units
  Scratch<acc_t> scratch_;

  const scalar_t* source_ = nullptr;
  int64_t row_stride_ = 0;
  int64_t rows_ = 0;
  int64_t base_ = 0;  // the unit at the start of the scratch memory
  int64_t begin_ = 0; // packed units [begin, end)
  int64_t end_ = 0;
};

} // namespace CPU_CAPABILITY
} // namespace subquad
