#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "common/strides.h"

namespace subquad {

// A fresh [B, H, L, width] tensor whose axes lie in memory in the order of
// `like`'s: the result for a [L, B, H * D] or [B, L, H * D] projection seen as
// [B, H, L, D] can be viewed back without a copy.
inline at::Tensor empty_in_layout_of(
    const at::Tensor& like,
    const c10::SymInt& width) {
  const c10::SymInt batch = like.sym_size(0);
  const c10::SymInt heads = like.sym_size(1);
  const c10::SymInt length = like.sym_size(2);
  if (like.sym_stride(1) >= like.sym_stride(2)) {
    return at::empty_symint({batch, heads, length, width}, like.options());
  }
  if (like.sym_stride(0) >= like.sym_stride(2)) {
    return at::empty_symint({batch, length, heads, width}, like.options())
        .permute({0, 2, 1, 3});
  }
  return at::empty_symint({length, batch, heads, width}, like.options())
      .permute({1, 2, 0, 3});
}

inline Strides strides_of(const at::Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

} // namespace subquad
