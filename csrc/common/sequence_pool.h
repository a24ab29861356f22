#pragma once

#include <cstdint>

#include "common/index.h"
#include "common/strides.h"

// What the CPU and the CUDA kernels of sequence pooling are told. No tensor
// appears here: sizes, strides in elements and untyped pointers.
namespace subquad {

struct SequencePoolParams {
  int64_t batch;       // B; 1 when rows are packed
  int64_t rows;        // R spans; B unless packed
  int64_t heads;       // H
  int64_t value_heads; // Hv, divides H
  int64_t length;      // S
  int64_t slots;       // C
  int64_t value_dim;   // M
  bool packed;         // every row lies in batch 0

  // As in LinearAttentionParams.
  const int64_t* spans; // [R, 2]
  const int64_t* order; // [B, S]; null on the CPU

  const void* logits; // [B, H, S, C]
  Strides logits_stride;
  const void* value; // [B, Hv, S, M]
  Strides value_stride;

  void* output; // [R, H, C, M], dense
  void* lse;    // [R, H, C], dense, accumulation dtype
};

// Backward: output and lse of the params are inputs here. A null gradient is
// not wanted (those that are written) or zero (those that are read).
struct SequencePoolGradients {
  const void* grad_output; // [R, H, C, M], dense
  const void* grad_lse;    // [R, H, C], dense

  void* grad_logits; // [B, H, S, C]
  Strides grad_logits_stride;
  void* grad_value; // [B, Hv, S, M]
  Strides grad_value_stride;
};

} // namespace subquad
