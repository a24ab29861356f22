#pragma once

#include <cstdint>

#include "common/macros.h"

// Feature maps that work on a token alone, which linear attention applies while
// it loads queries and keys.
namespace subquad {

enum class FeatureMap : int32_t {
  kIdentity, // x
  kRelu,     // max(x, 0)
  kElu,      // 1 + elu(x)
  kSigmoid,  // 1 / (1 + exp(-x))
  kExp,      // exp(x)
  kSoftmax,  // softmax over the features
  // Deterministic parameter-free projection (Schlag, Irie and Schmidhuber 2021,
  // arXiv:2102.11174, eq. 37): with y = [max(x, 0), max(-x, 0)], 2 D wide,
  // feature j * 2D + i is y[i] * y[(i - 1 - j) mod 2D], j < degree.
  kDpfp,
};

// Features of a token of `width` elements, before the copies by weights.
SUBQUAD_HOST_DEVICE inline int64_t
mapped_features(FeatureMap map, int64_t width, int64_t degree) {
  return map == FeatureMap::kDpfp ? 2 * width * degree : width;
}

} // namespace subquad
