#pragma once

#include <cmath>
#include <limits>

#include "common/macros.h"

namespace subquad {

// Softmax over the union of two disjoint sets of logits, from the log-sum-exp
// of each: the shares of the sets and the log-sum-exp of all. A set without
// logits (-inf) has no share; two such sets stay one.
template <typename T>
struct Merged {
  T weight_a;
  T weight_b;
  T lse;
};

template <typename T>
SUBQUAD_HOST_DEVICE inline bool is_empty_lse(T lse) {
  return lse == -std::numeric_limits<T>::infinity();
}

template <typename T>
SUBQUAD_HOST_DEVICE inline Merged<T> merge_lse(T lse_a, T lse_b) {
  if (is_empty_lse(lse_a) && is_empty_lse(lse_b)) {
    return {T(0), T(0), lse_a};
  }
  const T top = lse_a > lse_b ? lse_a : lse_b;
  const T exp_a = std::exp(lse_a - top);
  const T exp_b = std::exp(lse_b - top);
  const T total = exp_a + exp_b;
  return {exp_a / total, exp_b / total, top + std::log(total)};
}

} // namespace subquad
