#pragma once

#include <ATen/OpMathType.h>
#include <ATen/cpu/vec/vec.h>

#include <cstdint>

#include "common/linear_attention.h"
#include "cpu/micro_kernel.h"
#include "cpu/pack.h"

// Features of a tile of tokens, and gradients back through them. Included by
// units that are compiled once per instruction set, hence the inline namespace.
namespace subquad {
inline namespace CPU_CAPABILITY {

template <typename acc_t>
inline void add_to_row(acc_t* row, int64_t count, acc_t value) {
  if (value == acc_t(0)) {
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    row[i] += value;
  }
}

// row[i] = f(row[i]) for whole vectors that cover `count` elements.
template <typename acc_t, typename Function>
inline void transform_row(acc_t* row, int64_t count, const Function& function) {
  for (int64_t i = 0; i < count; i += kLanes<acc_t>) {
    function(Vec<acc_t>::loadu(row + i)).store(row + i);
  }
}

// Of a row whose last vector is padded with anything.
template <typename acc_t>
inline void softmax_row(acc_t* row, int64_t count) {
  acc_t top = row[0];
  for (int64_t i = 1; i < count; ++i) {
    // The comparison is false for NaN, which then stays through the sum.
    top = row[i] > top ? row[i] : top;
  }
  const Vec<acc_t> shift(top);
  transform_row(
      row, count, [&](const Vec<acc_t>& x) { return exponential(x - shift); });
  acc_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += row[i];
  }
  const Vec<acc_t> factor(1 / sum);
  transform_row(row, count, [&](const Vec<acc_t>& x) { return x * factor; });
}

// One sigmoid for all dtypes: never overflows, keeps NaN.
template <typename acc_t>
inline Vec<acc_t> sigmoid(const Vec<acc_t>& x) {
  const Vec<acc_t> one(acc_t(1));
  const Vec<acc_t> magnitude = x.abs();
  const Vec<acc_t> e = magnitude.neg().exp();
  const Vec<acc_t> inverse = one / (one + e);
  return Vec<acc_t>::blendv(e * inverse, inverse, x >= Vec<acc_t>(acc_t(0)));
}

// The map alone, of a token of `width` elements that is padded to whole
// vectors. Not for dpfp.
template <typename acc_t>
inline void map_row(FeatureMap map, acc_t* row, int64_t width) {
  const Vec<acc_t> zero(acc_t(0));
  const Vec<acc_t> one(acc_t(1));
  switch (map) {
    case FeatureMap::kIdentity:
    case FeatureMap::kDpfp:
      return;
    case FeatureMap::kRelu:
      transform_row(row, width, [&](const Vec<acc_t>& x) {
        return at::vec::maximum(x, zero);
      });
      return;
    case FeatureMap::kElu:
      transform_row(row, width, [&](const Vec<acc_t>& x) {
        // exp of what is not positive, so that nothing overflows.
        const Vec<acc_t> low = at::vec::minimum(x, zero).exp();
        return Vec<acc_t>::blendv(low, x + one, x > zero);
      });
      return;
    case FeatureMap::kSigmoid:
      transform_row(
          row, width, [&](const Vec<acc_t>& x) { return sigmoid(x); });
      return;
    case FeatureMap::kExp:
      transform_row(row, width, [&](const Vec<acc_t>& x) { return x.exp(); });
      return;
    case FeatureMap::kSoftmax:
      softmax_row(row, width);
      return;
  }
}

// y = [max(x, 0), max(-x, 0)], 2 * width elements.
template <typename acc_t>
inline void split_signs(const acc_t* x, int64_t width, acc_t* y) {
  for (int64_t i = 0; i < width; ++i) {
    y[i] = x[i] < 0 ? acc_t(0) : x[i];
    y[width + i] = x[i] > 0 ? acc_t(0) : -x[i];
  }
}

// Features of tokens, in memory of its own per thread.
template <typename scalar_t>
class FeatureTile {
 public:
  using acc_t = at::opmath_type<scalar_t>;

  FeatureTile(const FeatureRule& rule, int64_t width, double scale)
      : rule_(rule),
        width_(width),
        mapped_(mapped_features(rule.map, width, rule.degree)),
        features_(mapped_ * rule.copies),
        scale_(static_cast<acc_t>(scale)),
        offset_(static_cast<acc_t>(rule.offset)),
        row_(round_to_lanes<acc_t>(width)),
        signs_(4 * width),
        mapped_row_(round_to_lanes<acc_t>(mapped_) + kLanes<acc_t>),
        grad_row_(round_to_lanes<acc_t>(mapped_) + kLanes<acc_t>) {}

  int64_t features() const {
    return features_;
  }

  // features[r] = scale * rule(token r), rows `stride` elements apart and zero
  // from features() to the end of the last vector. `weight` is that of the
  // first token, [rows, copies] dense, or null.
  void load(
      const scalar_t* tokens,
      int64_t token_stride,
      const acc_t* weight,
      int64_t rows,
      acc_t* features,
      int64_t stride) const {
    if (plain(weight)) {
      pack_rows(tokens, token_stride, rows, width_, features, stride, scale_);
      return;
    }
    for (int64_t r = 0; r < rows; ++r) {
      acc_t* target = features + r * stride;
      const acc_t* weights =
          weight == nullptr ? nullptr : weight + r * rule_.copies;
      acc_t* mapped = weights == nullptr ? target : mapped_row_.get();
      map(tokens + r * token_stride, mapped);
      if (weights == nullptr) {
        if (scale_ != acc_t(1)) {
          const Vec<acc_t> factor(scale_);
          transform_row(
              target, mapped_, [&](const Vec<acc_t>& x) { return x * factor; });
        }
      } else {
        for (int64_t c = 0; c < rule_.copies; ++c) {
          multiply_row(
              mapped, mapped_, scale_ * weights[c], target + c * mapped_);
        }
      }
      clear_tail(target, features_);
    }
  }

  // grad_tokens[r] = gradient through the features of token r. grad_features is
  // of the scaled features.
  void backward(
      const scalar_t* tokens,
      int64_t token_stride,
      const acc_t* weight,
      int64_t rows,
      const acc_t* grad_features,
      int64_t stride,
      scalar_t* grad_tokens,
      int64_t grad_stride) const {
    for (int64_t r = 0; r < rows; ++r) {
      const acc_t* given = grad_features + r * stride;
      scalar_t* target = grad_tokens + r * grad_stride;
      if (plain(weight)) {
        store_row(given, width_, target, scale_);
        continue;
      }
      acc_t* grad = grad_row_.get(); // of the mapped features
      if (weight == nullptr) {
        multiply_row(given, mapped_, scale_, grad);
      } else {
        const acc_t* weights = weight + r * rule_.copies;
        multiply_row(given, mapped_, scale_ * weights[0], grad);
        for (int64_t c = 1; c < rule_.copies; ++c) {
          const acc_t factor = scale_ * weights[c];
          const acc_t* copy = given + c * mapped_;
          for (int64_t i = 0; i < mapped_; ++i) {
            grad[i] += factor * copy[i];
          }
        }
      }
      map_backward(tokens + r * token_stride, grad);
      store_row(grad, width_, target);
    }
  }

 private:
  // Loading is packing.
  bool plain(const acc_t* weight) const {
    return rule_.map == FeatureMap::kIdentity && offset_ == acc_t(0) &&
        weight == nullptr;
  }

  static void multiply_row(
      const acc_t* source,
      int64_t count,
      acc_t factor,
      acc_t* target) {
    const Vec<acc_t> scale(factor);
    int64_t i = 0;
    for (; i + kLanes<acc_t> <= count; i += kLanes<acc_t>) {
      (Vec<acc_t>::loadu(source + i) * scale).store(target + i);
    }
    for (; i < count; ++i) {
      target[i] = source[i] * factor;
    }
  }

  static void clear_tail(acc_t* row, int64_t count) {
    for (int64_t i = count; i < round_to_lanes<acc_t>(count); ++i) {
      row[i] = acc_t(0);
    }
  }

  // target[mapped_] = map(token) + offset
  void map(const scalar_t* token, acc_t* target) const {
    if (rule_.map == FeatureMap::kDpfp) {
      load_row(token, width_, row_.get());
      acc_t* y = signs_.get();
      split_signs(row_.get(), width_, y);
      const int64_t wide = 2 * width_;
      for (int64_t j = 0; j < rule_.degree; ++j) {
        for (int64_t i = 0; i < wide; ++i) {
          const int64_t other = i - 1 - j;
          target[j * wide + i] = y[i] * y[other < 0 ? other + wide : other];
        }
      }
    } else {
      load_row(token, width_, target);
      map_row(rule_.map, target, width_);
    }
    add_to_row(target, mapped_, offset_);
  }

  // Turns the gradient of the mapped features into that of the token.
  void map_backward(const scalar_t* token, acc_t* grad) const {
    acc_t* x = row_.get();
    load_row(token, width_, x);
    switch (rule_.map) {
      case FeatureMap::kIdentity:
        return;
      case FeatureMap::kRelu:
        for (int64_t i = 0; i < width_; ++i) {
          grad[i] = x[i] <= 0 ? acc_t(0) : grad[i];
        }
        return;
      case FeatureMap::kElu:
        map_row(rule_.map, x, width_);
        for (int64_t i = 0; i < width_; ++i) {
          // The feature is exp(x) where it is below 1.
          grad[i] *= x[i] < 1 ? x[i] : acc_t(1);
        }
        return;
      case FeatureMap::kSigmoid:
        map_row(rule_.map, x, width_);
        for (int64_t i = 0; i < width_; ++i) {
          grad[i] *= x[i] * (1 - x[i]);
        }
        return;
      case FeatureMap::kExp:
        map_row(rule_.map, x, width_);
        for (int64_t i = 0; i < width_; ++i) {
          grad[i] *= x[i];
        }
        return;
      case FeatureMap::kSoftmax: {
        map_row(rule_.map, x, width_);
        acc_t mean = 0;
        for (int64_t i = 0; i < width_; ++i) {
          mean += x[i] * grad[i];
        }
        for (int64_t i = 0; i < width_; ++i) {
          grad[i] = x[i] * (grad[i] - mean);
        }
        return;
      }
      case FeatureMap::kDpfp: {
        const int64_t wide = 2 * width_;
        acc_t* y = signs_.get();
        acc_t* grad_y = y + wide;
        split_signs(x, width_, y);
        std::fill(grad_y, grad_y + wide, acc_t(0));
        for (int64_t j = 0; j < rule_.degree; ++j) {
          for (int64_t i = 0; i < wide; ++i) {
            const int64_t other = i - 1 - j < 0 ? i - 1 - j + wide : i - 1 - j;
            grad_y[i] += grad[j * wide + i] * y[other];
            grad_y[other] += grad[j * wide + i] * y[i];
          }
        }
        for (int64_t i = 0; i < width_; ++i) {
          grad[i] = (x[i] > 0 ? grad_y[i] : acc_t(0)) -
              (x[i] < 0 ? grad_y[width_ + i] : acc_t(0));
        }
        return;
      }
    }
  }

  FeatureRule rule_;
  int64_t width_;    // D
  int64_t mapped_;   // features before the copies
  int64_t features_; // all
  acc_t scale_;
  acc_t offset_;
  Scratch<acc_t> row_;
  Scratch<acc_t> signs_;
  Scratch<acc_t> mapped_row_;
  Scratch<acc_t> grad_row_;
};

} // namespace CPU_CAPABILITY
} // namespace subquad
