#pragma once

#include "common/scalar_kind.h"
#include "common/window_attention.h"

namespace subquad {

// Launches on `stream` (a cudaStream_t) and returns a cudaError_t. Writes every
// query, but with an order only those that belong to a row. There is at least
// one query, M is positive and D in [1, 256].
int launch_window_attention_forward(
    const WindowAttentionParams& params,
    ScalarKind dtype,
    void* stream);

// The same for the gradients that are wanted; with an order only what belongs
// to a row is written of those of queries, keys, values and key_bias.
// `workspace`: as much memory as backward_workspace() says. M is in [1, 256].
int launch_window_attention_backward(
    const WindowAttentionParams& params,
    const WindowAttentionGradients& gradients,
    void* workspace,
    ScalarKind dtype,
    void* stream);

} // namespace subquad
