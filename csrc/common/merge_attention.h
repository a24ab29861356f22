#pragma once

#include <cstdint>

#include "common/strides.h"

// What the CPU and the CUDA kernels of merge_attention are told.
namespace subquad {

struct MergeAttentionParams {
  int64_t batch;  // B
  int64_t heads;  // H
  int64_t length; // L
  int64_t width;  // M

  const void* output_a; // [B, H, L, M]
  Strides output_a_stride;
  const void* lse_a;    // [B, H, L], dense, of the accumulation dtype
  const void* output_b; // [B, H, L, M]
  Strides output_b_stride;
  const void* lse_b; // [B, H, L]

  void* output; // [B, H, L, M]; unused in backward
  Strides output_stride;
  void* lse; // [B, H, L]; unused in backward
};

// A null gradient of a result is zero; one of an argument is not wanted.
struct MergeAttentionGradients {
  const void* grad_output; // [B, H, L, M]
  Strides grad_output_stride;
  const void* grad_lse; // [B, H, L], dense

  void* grad_output_a; // [B, H, L, M]
  Strides grad_output_a_stride;
  void* grad_lse_a;    // [B, H, L], dense
  void* grad_output_b; // [B, H, L, M]
  Strides grad_output_b_stride;
  void* grad_lse_b; // [B, H, L], dense
};

} // namespace subquad
