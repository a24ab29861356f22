#pragma once

#include <ATen/native/DispatchStub.h>
#include <c10/core/ScalarType.h>

#include "common/linear_attention.h"

// The stubs live in ATen's namespace because its registration macros
// specialise a template of that namespace.
namespace at::native {

using subquad_linear_attention_forward_fn =
    void (*)(const subquad::LinearAttentionParams&, c10::ScalarType);
using subquad_linear_attention_backward_fn = void (*)(
    const subquad::LinearAttentionParams&,
    const subquad::LinearAttentionGradients&,
    c10::ScalarType);

DECLARE_DISPATCH(
    subquad_linear_attention_forward_fn,
    subquad_linear_attention_forward_stub)
DECLARE_DISPATCH(
    subquad_linear_attention_backward_fn,
    subquad_linear_attention_backward_stub)

} // namespace at::native
