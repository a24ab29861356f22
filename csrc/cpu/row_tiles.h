#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/index.h"

// How the valid tokens of rows are cut into tiles, the unit of parallel work.
// The cuts follow from the row alone, never from other rows or the number of
// threads. Included by units that are compiled once per instruction set, hence
// the inline namespace.
namespace subquad {
inline namespace CPU_CAPABILITY {

// Tokens [begin, end) of the tensor's axis, all of one row.
struct RowTile {
  int64_t row;
  int64_t begin;
  int64_t end;
};

// Numbers the tiles of all rows consecutively.
class RowTiles {
 public:
  RowTiles(
      const int64_t* spans, // [rows, 2], or null
      int64_t rows,
      int64_t length,
      int64_t tile)
      : spans_(spans), length_(length), tile_(tile) {
    first_.reserve(static_cast<size_t>(rows) + 1);
    first_.push_back(0);
    for (int64_t row = 0; row < rows; ++row) {
      first_.push_back(first_.back() + ceil_divide(span(row).length, tile));
    }
  }

  int64_t size() const {
    return first_.back();
  }

  Span span(int64_t row) const {
    return row_span(spans_, row, length_);
  }

  // The tiles of a row.
  Range of_row(int64_t row) const {
    return {
        first_[static_cast<size_t>(row)], first_[static_cast<size_t>(row) + 1]};
  }

  RowTile operator[](int64_t index) const {
    const int64_t row = std::upper_bound(first_.begin(), first_.end(), index) -
        first_.begin() - 1;
    const Span tokens = span(row);
    const int64_t offset = (index - of_row(row).begin) * tile_;
    return {
        row,
        tokens.start + offset,
        tokens.start + min_index(offset + tile_, tokens.length)};
  }

 private:
  const int64_t* spans_;
  int64_t length_;
  int64_t tile_;
  std::vector<int64_t> first_; // [rows + 1]
};

} // namespace CPU_CAPABILITY
} // namespace subquad
