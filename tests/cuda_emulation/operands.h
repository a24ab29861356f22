#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

#include "buffers.h"
#include "common/scalar_kind.h"
#include "common/strides.h"

namespace subquad {

inline size_t size_of(ScalarKind kind) {
  switch (kind) {
    case ScalarKind::kDouble:
      return 8;
    case ScalarKind::kFloat:
      return 4;
    default:
      return 2;
  }
}

inline size_t acc_size_of(ScalarKind kind) {
  return kind == ScalarKind::kDouble ? 8 : 4;
}

// The tensors that a launch may touch, and how; null pointers are none.
class Operands {
 public:
  Operands(int64_t batch, int64_t heads, int64_t length, ScalarKind dtype)
      : batch_(batch), heads_(heads), length_(length), dtype_(dtype) {}

  void bytes(const char* name, const void* data, size_t size, bool read_only) {
    if (data != nullptr && size > 0) {
      buffers_.emplace_back(name, data, size, read_only);
    }
  }

  // [batch, heads, length, width] of other sizes than the query's.
  void strided(
      const char* name,
      const void* data,
      const Strides& stride,
      int64_t batch,
      int64_t heads,
      int64_t length,
      int64_t width,
      bool read_only) {
    if (batch * heads * length * width == 0) {
      return;
    }
    const int64_t elements = (batch - 1) * stride.batch +
        (heads - 1) * stride.head + (length - 1) * stride.row + width;
    bytes(name, data, elements * size_of(dtype_), read_only);
  }

  // [B, H, L, width]
  void input(
      const char* name,
      const void* data,
      const Strides& stride,
      int64_t width) {
    strided(name, data, stride, batch_, heads_, length_, width, true);
  }
  void
  output(const char* name, void* data, const Strides& stride, int64_t width) {
    strided(name, data, stride, batch_, heads_, length_, width, false);
  }

  // [B, H, L], dense, of the accumulation dtype
  void lines(const char* name, const void* data, bool read_only) {
    bytes(
        name, data, batch_ * heads_ * length_ * acc_size_of(dtype_), read_only);
  }

  // Dense, of the element type.
  void
  dense(const char* name, const void* data, int64_t elements, bool read_only) {
    bytes(name, data, elements * size_of(dtype_), read_only);
  }

  void indices(const char* name, const int64_t* data, int64_t count) {
    bytes(name, data, count * sizeof(int64_t), true);
  }

 private:
  int64_t batch_;
  int64_t heads_;
  int64_t length_;
  ScalarKind dtype_;
  std::deque<emu::Registration> buffers_;
};

} // namespace subquad
