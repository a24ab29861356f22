#pragma once

#include <cstdint>

namespace subquad {

// Element strides of a [B, H, L, D] tensor; its last axis is dense.
struct Strides {
  int64_t batch;
  int64_t head;
  int64_t row;
};

} // namespace subquad
