#pragma once

#include "common/merge_attention.h"
#include "common/scalar_kind.h"

namespace subquad {

// Launch on `stream` (a cudaStream_t) and return a cudaError_t. There is at
// least one line.
int launch_merge_attention_forward(
    const MergeAttentionParams& params,
    ScalarKind dtype,
    void* stream);
int launch_merge_attention_backward(
    const MergeAttentionParams& params,
    const MergeAttentionGradients& gradients,
    ScalarKind dtype,
    void* stream);

} // namespace subquad
