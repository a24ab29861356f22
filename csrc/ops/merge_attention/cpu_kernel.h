#pragma once

#include <ATen/native/DispatchStub.h>
#include <c10/core/ScalarType.h>

#include "common/merge_attention.h"

// The stubs live in ATen's namespace because its registration macros
// specialise a template of that namespace.
namespace at::native {

using subquad_merge_attention_forward_fn =
    void (*)(const subquad::MergeAttentionParams&, c10::ScalarType);
using subquad_merge_attention_backward_fn = void (*)(
    const subquad::MergeAttentionParams&,
    const subquad::MergeAttentionGradients&,
    c10::ScalarType);

DECLARE_DISPATCH(
    subquad_merge_attention_forward_fn,
    subquad_merge_attention_forward_stub)
DECLARE_DISPATCH(
    subquad_merge_attention_backward_fn,
    subquad_merge_attention_backward_stub)

} // namespace at::native
