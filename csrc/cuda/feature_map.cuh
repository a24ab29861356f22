#pragma once

#include <cstdint>

#include "common/linear_attention.h"
#include "cuda/tile.cuh"

// Feature maps of single tokens and their derivatives.
namespace subquad::cuda {

// exponential() of tile.cuh is for weights; features may be large numbers,
// whose error it would multiply.
__device__ __forceinline__ float exact_exponential(float x) {
  return expf(x);
}
__device__ __forceinline__ double exact_exponential(double x) {
  return exp(x);
}

// exp(before - after), and 0 where nothing came before.
template <typename acc>
__device__ __forceinline__ acc decay(acc before, acc after) {
  return before == acc(-INFINITY) ? acc(0) : exact_exponential(before - after);
}

// Queries or keys, and how they become features.
struct FeatureSource {
  const void* data; // [B, heads, N, width]
  Strides stride;
  const void* weight; // [1 or B, N, copies], accumulation dtype, or null
  int64_t weight_stride;
  FeatureRule rule;
  int width;    // D
  int mapped;   // features of a copy
  int features; // of all copies
  bool plain;   // the tokens are the features
  bool vectors; // and are copied 16 bytes at a time
};

template <typename scalar_t>
FeatureSource feature_source(
    const void* data,
    const Strides& stride,
    const void* weight,
    int64_t weight_stride,
    const FeatureRule& rule,
    int64_t width) {
  const int64_t mapped = mapped_features(rule.map, width, rule.degree);
  FeatureSource source{
      data,
      stride,
      weight,
      weight_stride,
      rule,
      static_cast<int>(width),
      static_cast<int>(mapped),
      static_cast<int>(mapped * rule.copies),
      false,
      false};
  source.plain = rule.map == FeatureMap::kIdentity && rule.offset == 0 &&
      weight == nullptr;
  source.vectors = takes_vectors<scalar_t>(data, stride, width);
  return source;
}

// Of a softmax: the largest element and one over the sum of exponentials.
template <typename acc>
struct SoftmaxTerms {
  acc top;
  acc inverse;
};

// By a warp; every lane gets them.
template <typename scalar_t>
__device__ __forceinline__ SoftmaxTerms<acc_t<scalar_t>> softmax_terms(
    const scalar_t* x, // [width]
    int width) {
  using acc = acc_t<scalar_t>;
  acc top = -INFINITY;
#pragma unroll 1
  for (int d = lane_index(); d < width; d += kWarpSize) {
    top = larger(top, to_acc(x[d]));
  }
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    top = larger(top, __shfl_xor_sync(kAllLanes, top, offset));
  }
  acc sum = 0;
#pragma unroll 1
  for (int d = lane_index(); d < width; d += kWarpSize) {
    sum += exact_exponential(to_acc(x[d]) - top);
  }
  return {top, acc(1) / sum_lanes(sum)};
}

// Element i of [max(x, 0), max(-x, 0)], i taken modulo its width.
template <typename scalar_t>
__device__ __forceinline__ acc_t<scalar_t>
halved(const scalar_t* x, int width, int i) {
  using acc = acc_t<scalar_t>;
  i %= 2 * width;
  i = i < 0 ? i + 2 * width : i;
  const acc value = i < width ? to_acc(x[i]) : -to_acc(x[i - width]);
  return value < acc(0) ? acc(0) : value; // NaN stays
}

// A feature, before its weight, of a map that makes one of each element.
template <typename acc>
__device__ __forceinline__ acc mapped_element(
    const FeatureRule& rule,
    const SoftmaxTerms<acc>& softmax,
    acc value) {
  switch (rule.map) {
    case FeatureMap::kRelu:
      value = value < acc(0) ? acc(0) : value;
      break;
    case FeatureMap::kElu:
      value = value > acc(0) ? value + acc(1) : exact_exponential(value);
      break;
    case FeatureMap::kSigmoid:
      value = acc(1) / (acc(1) + exact_exponential(-value));
      break;
    case FeatureMap::kExp:
      value = exact_exponential(value);
      break;
    case FeatureMap::kSoftmax:
      value = exact_exponential(value - softmax.top) * softmax.inverse;
      break;
    default:
      break;
  }
  return value + static_cast<acc>(rule.offset);
}

// Feature f of a copy, before its weight.
template <typename scalar_t>
__device__ __forceinline__ acc_t<scalar_t> mapped_feature(
    const FeatureSource& source,
    const scalar_t* x, // [D]
    const SoftmaxTerms<acc_t<scalar_t>>& softmax,
    int f) {
  if (source.rule.map != FeatureMap::kDpfp) {
    return mapped_element(source.rule, softmax, to_acc(x[f]));
  }
  const int roll = f / (2 * source.width);
  const int i = f % (2 * source.width);
  return halved(x, source.width, i) * halved(x, source.width, i - 1 - roll) +
      static_cast<acc_t<scalar_t>>(source.rule.offset);
}

template <typename scalar_t>
__device__ __forceinline__ const scalar_t* token_row(
    const FeatureSource& source,
    int64_t batch,
    int64_t head,
    int64_t token) {
  return static_cast<const scalar_t*>(source.data) +
      batch * source.stride.batch + head * source.stride.head +
      token * source.stride.row;
}

// [copies] of a token; null without weights.
template <typename acc>
__device__ __forceinline__ const acc*
token_weights(const FeatureSource& source, int64_t batch, int64_t token) {
  return source.weight == nullptr ? nullptr
                                  : static_cast<const acc*>(source.weight) +
          batch * source.weight_stride + token * source.rule.copies;
}

// Feature f of all copies.
template <typename scalar_t>
__device__ __forceinline__ acc_t<scalar_t> token_feature(
    const FeatureSource& source,
    const scalar_t* x,              // [D]
    const acc_t<scalar_t>* weights, // [copies] or null
    const SoftmaxTerms<acc_t<scalar_t>>& softmax,
    int f) {
  if (weights == nullptr) {
    return mapped_feature(source, x, softmax, f);
  }
  return mapped_feature(source, x, softmax, f % source.mapped) *
      weights[f / source.mapped];
}

// Gradient of mapped feature f, from those of all copies.
template <typename acc>
__device__ __forceinline__ acc mapped_gradient(
    const FeatureSource& source,
    const acc* gradient, // [features]
    const acc* weights,  // [copies] or null
    int f) {
  if (weights == nullptr) {
    return gradient[f];
  }
  acc sum = 0;
#pragma unroll 1
  for (int copy = 0; copy < source.rule.copies; ++copy) {
    sum += weights[copy] * gradient[copy * source.mapped + f];
  }
  return sum;
}

// Gradient of element i of [max(x, 0), max(-x, 0)], which is a factor of two
// features for each roll.
template <typename scalar_t>
__device__ __forceinline__ acc_t<scalar_t> halved_gradient(
    const FeatureSource& source,
    const scalar_t* x,
    const acc_t<scalar_t>* gradient,
    const acc_t<scalar_t>* weights,
    int i) {
  using acc = acc_t<scalar_t>;
  const int period = 2 * source.width;
  acc sum = 0;
#pragma unroll 1
  for (int roll = 0; roll < source.rule.degree; ++roll) {
    const int other = (i + 1 + roll) % period;
    sum += mapped_gradient(source, gradient, weights, roll * period + i) *
        halved(x, source.width, i - 1 - roll);
    sum += mapped_gradient(source, gradient, weights, roll * period + other) *
        halved(x, source.width, other);
  }
  return sum;
}

// Gradient of a token from that of its features, by a warp.
template <typename scalar_t>
__device__ __forceinline__ void token_gradient(
    const FeatureSource& source,
    const scalar_t* x,              // [D]
    const acc_t<scalar_t>* weights, // [copies] or null
    const SoftmaxTerms<acc_t<scalar_t>>& softmax,
    const acc_t<scalar_t>* gradient, // [features]
    scalar_t* result) {              // [D]
  using acc = acc_t<scalar_t>;
  acc mean = 0; // of a softmax's gradient
  if (source.rule.map == FeatureMap::kSoftmax) {
#pragma unroll 1
    for (int d = lane_index(); d < source.width; d += kWarpSize) {
      mean += mapped_gradient(source, gradient, weights, d) *
          exact_exponential(to_acc(x[d]) - softmax.top) * softmax.inverse;
    }
    mean = sum_lanes(mean);
  }
#pragma unroll 1
  for (int d = lane_index(); d < source.width; d += kWarpSize) {
    const acc value = to_acc(x[d]);
    acc g;
    if (source.rule.map == FeatureMap::kDpfp) {
      g = 0;
      if (!(value <= acc(0))) {
        g = halved_gradient(source, x, gradient, weights, d);
      }
      if (!(value >= acc(0))) {
        g -= halved_gradient(source, x, gradient, weights, d + source.width);
      }
    } else {
      g = mapped_gradient(source, gradient, weights, d);
      switch (source.rule.map) {
        case FeatureMap::kRelu:
          g = value <= acc(0) ? acc(0) : g;
          break;
        case FeatureMap::kElu:
          g = value > acc(0) ? g : g * exact_exponential(value);
          break;
        case FeatureMap::kSigmoid: {
          const acc y = acc(1) / (acc(1) + exact_exponential(-value));
          g *= y * (acc(1) - y);
          break;
        }
        case FeatureMap::kExp:
          g *= exact_exponential(value);
          break;
        case FeatureMap::kSoftmax:
          g = (g - mean) * exact_exponential(value - softmax.top) *
              softmax.inverse;
          break;
        default:
          break;
      }
    }
    result[d] = from_acc<scalar_t>(g);
  }
}

} // namespace subquad::cuda
