#pragma once

#include "common/random_features.h"
#include "common/scalar_kind.h"

namespace subquad {

// Launch on `stream` (a cudaStream_t) and return a cudaError_t. D <= 256.
int launch_random_features_forward(
    const RandomFeaturesParams& params,
    ScalarKind dtype,
    void* stream);

// `workspace` is as large as backward_workspace() says.
int launch_random_features_backward(
    const RandomFeaturesParams& params,
    const RandomFeaturesGradients& gradients,
    void* workspace,
    ScalarKind dtype,
    void* stream);

} // namespace subquad
