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

} // namespace subquad
