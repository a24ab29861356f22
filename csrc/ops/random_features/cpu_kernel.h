#pragma once

#include <ATen/native/DispatchStub.h>
#include <c10/core/ScalarType.h>

#include "common/random_features.h"

// The stubs live in ATen's namespace because its registration macros
// specialise a template of that namespace.
namespace at::native {

using subquad_random_features_forward_fn =
    void (*)(const subquad::RandomFeaturesParams&, c10::ScalarType);
using subquad_random_features_backward_fn = void (*)(
    const subquad::RandomFeaturesParams&,
    const subquad::RandomFeaturesGradients&,
    c10::ScalarType);

DECLARE_DISPATCH(
    subquad_random_features_forward_fn,
    subquad_random_features_forward_stub)
DECLARE_DISPATCH(
    subquad_random_features_backward_fn,
    subquad_random_features_backward_stub)

} // namespace at::native
