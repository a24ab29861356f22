#pragma once

#include <ATen/native/DispatchStub.h>
#include <c10/core/ScalarType.h>

#include "common/sequence_pool.h"

// The stubs live in ATen's namespace because its registration macros
// specialise a template of that namespace.
namespace at::native {

using subquad_sequence_pool_forward_fn =
    void (*)(const subquad::SequencePoolParams&, c10::ScalarType);
using subquad_sequence_pool_backward_fn = void (*)(
    const subquad::SequencePoolParams&,
    const subquad::SequencePoolGradients&,
    c10::ScalarType);

DECLARE_DISPATCH(
    subquad_sequence_pool_forward_fn,
    subquad_sequence_pool_forward_stub)
DECLARE_DISPATCH(
    subquad_sequence_pool_backward_fn,
    subquad_sequence_pool_backward_stub)

} // namespace at::native
