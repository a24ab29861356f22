#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace subquad {

// A padding mask [B, S] (nonzero: padding; NaN is not zero) as the rows that
// operators take:
//
//   lengths [B]    number of valid tokens
//   order   [B, S] index of the j-th valid token for j < length, then of the
//                  padded ones; both parts ascend
//
// dtypes: bool, integers, float64, float32, bfloat16, float16; results int64.
// Shapes do not depend on the data. Not differentiable.
void check_mask_to_spans(const at::Tensor& mask);

std::tuple<at::Tensor, at::Tensor> empty_mask_to_spans_outputs(
    const at::Tensor& mask);

} // namespace subquad
