#pragma once

#include <cstdint>

// What the CUDA kernel of mask_to_spans is told.
namespace subquad {

struct MaskToSpansParams {
  int64_t rows; // B
  int64_t size; // S

  const void* mask;     // [B, S], dense
  int64_t element_size; // bytes: 1, 2, 4 or 8
  // The bits of which some are set in every element but zero: all of them, but
  // for the sign of a floating point number.
  uint64_t significant;

  int64_t* lengths; // [B]
  int64_t* order;   // [B, S]
};

} // namespace subquad
