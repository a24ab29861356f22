#pragma once

#include "common/window_attention.h"

// What the CUDA kernels of window_attention_weights are told besides
// WindowAttentionParams, whose logsumexp is an input.
namespace subquad {

struct WindowAttentionWeightsGradientParams {
  const void* grad;    // [B, H, L, W], dense
  const void* weights; // [B, H, L, W], dense

  // Null: not wanted. Elements outside the rows are not written.
  void* grad_query; // [B, H, L, D]
  Strides grad_query_stride;
  void* grad_key; // [B, Hkv, S, D]
  Strides grad_key_stride;
  void* grad_lse;          // [B, H, L], dense, of the accumulation dtype
  void* grad_bias;         // like bias
  void* grad_key_bias;     // [B, S], dense
  void* grad_relative_key; // like relative_key
};

} // namespace subquad
