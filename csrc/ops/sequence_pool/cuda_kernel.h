#pragma once

#include "common/scalar_kind.h"
#include "common/sequence_pool.h"

namespace subquad {

// Launch on `stream` (a cudaStream_t) and return a cudaError_t. `workspace` is
// as large as workspace.h says.
int launch_sequence_pool_forward(
    const SequencePoolParams& params,
    void* workspace,
    ScalarKind dtype,
    void* stream);

// M <= 256.
int launch_sequence_pool_backward(
    const SequencePoolParams& params,
    const SequencePoolGradients& gradients,
    void* workspace,
    ScalarKind dtype,
    void* stream);

} // namespace subquad
