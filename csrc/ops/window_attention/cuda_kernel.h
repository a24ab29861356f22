#pragma once

#include "common/scalar_kind.h"
#include "common/window_attention.h"

namespace subquad {

// Launches on `stream` (a cudaStream_t) and returns a cudaError_t. Writes the
// queries that belong to a row.
int launch_window_attention_forward(
    const WindowAttentionParams& params,
    ScalarKind dtype,
    void* stream);

} // namespace subquad
