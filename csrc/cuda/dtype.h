#pragma once

#include <ATen/core/Tensor.h>

#include "common/scalar_kind.h"

namespace subquad::cuda {

inline ScalarKind scalar_kind(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return ScalarKind::kDouble;
    case at::kFloat:
      return ScalarKind::kFloat;
    case at::kBFloat16:
      return ScalarKind::kBFloat16;
    default:
      TORCH_INTERNAL_ASSERT(tensor.scalar_type() == at::kHalf);
      return ScalarKind::kHalf;
  }
}

} // namespace subquad::cuda
