#pragma once

#include "common/scalar_kind.h"
#include "common/window_attention_weights.h"

namespace subquad {

// Launch on `stream` (a cudaStream_t) and return a cudaError_t. `weights`,
// [B, H, L, W] and dense, are zero; those of keys that are seen are written.
// There is at least one weight.
int launch_window_attention_weights_forward(
    const WindowAttentionParams& params,
    void* weights,
    ScalarKind dtype,
    void* stream);
int launch_window_attention_weights_backward(
    const WindowAttentionParams& params,
    const WindowAttentionWeightsGradientParams& gradients,
    ScalarKind dtype,
    void* stream);

} // namespace subquad
