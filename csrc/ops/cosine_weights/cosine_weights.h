#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>

#include "ops/optional.h"

namespace subquad {

// The weights that make linear attention cosFormer's (Qin et al. 2022,
// arXiv:2202.08791, eq. 10): a token at position i (from 0) of at most m gets
//
//   (sin theta, cos theta),  theta = pi / 2 (i + 1) / m,
//
// so that the products of two tokens' features are multiplied by
// cos(pi / 2 (i - j) / m).
//
// Shapes: position [N] or [B, N] int64; m is max_length, or lengths [B] or
// [B, N] int64 (0 counts as 1); result [1 or B, N, 2] in `dtype`, float32 or
// float64. A position beyond max_length is refused on the CPU; on other
// devices, where a look at it would wait for the device, its angle is beyond pi
// / 2. Not differentiable.
struct CosineWeightsArguments {
  std::optional<c10::SymInt> max_length;
  OptionalTensor lengths;
  std::optional<at::ScalarType> dtype;
};

// The checks that need no data; every backend calls them.
void check_cosine_weights(
    const at::Tensor& position,
    const CosineWeightsArguments& arguments);

at::Tensor empty_cosine_weights(
    const at::Tensor& position,
    const CosineWeightsArguments& arguments);

} // namespace subquad
