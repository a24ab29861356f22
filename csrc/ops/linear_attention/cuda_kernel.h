#pragma once

#include "common/linear_attention.h"
#include "common/scalar_kind.h"

namespace subquad {

// Launches on `stream` (a cudaStream_t) and returns a cudaError_t. Writes the
// queries that belong to a row, and the new states. `workspace`: as much memory
// as linear_attention_workspace() says, without gradients.
int launch_linear_attention_forward(
    const LinearAttentionParams& params,
    void* workspace,
    ScalarKind dtype,
    void* stream);

// The same for the gradients that are wanted, of tokens that belong to a row;
// grad_output is not null.
int launch_linear_attention_backward(
    const LinearAttentionParams& params,
    const LinearAttentionGradients& gradients,
    void* workspace,
    ScalarKind dtype,
    void* stream);

} // namespace subquad
