#pragma once

#include <cstdint>

#include "common/index.h"

namespace subquad::cuda {

constexpr int64_t kMaxGrid = 2147483647; // of blockIdx.x

// Blocks of a launch whose kernel loops from blockIdx.x in steps of gridDim.x
// until `blocks` are done, whatever the limit of the hardware.
inline unsigned grid_size(int64_t blocks) {
  return static_cast<unsigned>(min_index(blocks, kMaxGrid));
}

// Blocks of a launch whose kernel does not loop; too many become a size that
// the launch refuses.
inline unsigned exact_grid_size(int64_t blocks) {
  return blocks <= kMaxGrid ? static_cast<unsigned>(blocks) : 0;
}

} // namespace subquad::cuda
