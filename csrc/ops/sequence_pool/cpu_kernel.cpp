#include "ops/sequence_pool/cpu_kernel.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "cpu/micro_kernel.h"
#include "cpu/pack.h"
#include "cpu/row_tiles.h"

namespace subquad {

namespace {

// Tokens of a segment, the unit of parallel work: long enough that the sums of
// the segments are few, short enough that one head keeps several threads busy.
constexpr int64_t kSegment = 512;

// Tokens whose weights are made, and used while they are in the cache.
constexpr int64_t kChunk = 64;

// Multiply-adds that are not worth a second thread.
constexpr int64_t kSerialWork = 200000;

int64_t grain_of(const SequencePoolParams& params, int64_t tokens) {
  const int64_t work =
      max_index(tokens * params.slots * params.value_dim, int64_t{1});
  return max_index(kSerialWork / work, 1);
}

// A token's vector in a [B, heads, S, width] tensor.
template <typename T>
T* token_at(
    T* data,
    const Strides& stride,
    int64_t batch,
    int64_t head,
    int64_t token) {
  return data + batch * stride.batch + head * stride.head + token * stride.row;
}

// Values as the register tiles want them: where they lie if that will do,
// else packed.
template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
class Values {
 public:
  explicit Values(int64_t width)
      : width_(width),
        padded_(round_to_lanes<acc_t>(width)),
        scratch_(in_place() ? 0 : kChunk * padded_) {}

  // [count, width], zeros to the end of the last vector.
  void load(const scalar_t* values, int64_t stride, int64_t count) {
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      if (in_place()) {
        data_ = values;
        stride_ = stride;
        return;
      }
    }
    pack_rows(values, stride, count, width_, scratch_.get(), padded_);
    data_ = scratch_.get();
    stride_ = padded_;
  }

  const acc_t* data() const {
    return data_;
  }

  // Elements from one row to the next.
  int64_t stride() const {
    return stride_;
  }

 private:
  bool in_place() const {
    return std::is_same_v<scalar_t, acc_t> && width_ == padded_;
  }

  int64_t width_;
  int64_t padded_;
  Scratch<acc_t> scratch_;
  const acc_t* data_ = nullptr;
  int64_t stride_ = 0;
};

// The softmax of a segment that is not divided by its sum yet. Slots are the
// lanes of vectors, so that nothing is reduced across lanes.
template <typename acc_t>
struct Sums {
  static int64_t size(const SequencePoolParams& params) {
    return params.slots * round_to_lanes<acc_t>(params.value_dim) +
        2 * round_to_lanes<acc_t>(params.slots);
  }

  Sums(const SequencePoolParams& params, acc_t* data)
      : top(data),
        total(top + round_to_lanes<acc_t>(params.slots)),
        output(total + round_to_lanes<acc_t>(params.slots)) {}

  acc_t* top;    // [C], the largest logit
  acc_t* total;  // [C], sum of the weights exp(logit - top)
  acc_t* output; // [C, M], vectors padded: sum of weighted values
};

// The largest logit, or 0 where there is none: -inf is no number to subtract.
template <typename acc_t>
Vec<acc_t> shift_of(const Vec<acc_t>& top) {
  const Vec<acc_t> none(-std::numeric_limits<acc_t>::infinity());
  return Vec<acc_t>::blendv(top, Vec<acc_t>(acc_t(0)), top == none);
}

template <typename scalar_t>
class Forward {
 public:
  using acc_t = at::opmath_type<scalar_t>;
  static constexpr int64_t kLane = kLanes<acc_t>;

  explicit Forward(const SequencePoolParams& params)
      : params_(params),
        slots_(round_to_lanes<acc_t>(params.slots)),
        value_dim_(round_to_lanes<acc_t>(params.value_dim)),
        values_(params.value_dim),
        weights_(kChunk * slots_),
        factor_(slots_) {}

  void run(const RowTile& segment, int64_t head, const Sums<acc_t>& sums) {
    const int64_t batch = params_.packed ? 0 : segment.row;
    const int64_t value_head = head / (params_.heads / params_.value_heads);
    const acc_t nothing = -std::numeric_limits<acc_t>::infinity();
    std::fill_n(sums.top, slots_, nothing);
    std::fill_n(sums.total, slots_, acc_t(0));
    std::fill_n(sums.output, params_.slots * value_dim_, acc_t(0));
    for (int64_t begin = segment.begin; begin < segment.end; begin += kChunk) {
      const int64_t count = min_index(kChunk, segment.end - begin);
      const scalar_t* logits = token_at(
          static_cast<const scalar_t*>(params_.logits),
          params_.logits_stride,
          batch,
          head,
          begin);
      bool moved = false;
      for (int64_t c = 0; c < params_.slots; c += kLane) {
        moved |= weigh(logits, count, c, sums);
      }
      if (moved) {
        rescale(sums.output);
      }
      values_.load(
          token_at(
              static_cast<const scalar_t*>(params_.value),
              params_.value_stride,
              batch,
              value_head,
              begin),
          params_.value_stride.row,
          count);
      multiply<acc_t>(
          params_.slots,
          value_dim_ / kLane,
          count,
          weights_.get(),
          1,
          slots_,
          values_.data(),
          values_.stride(),
          kLane,
          sums.output,
          value_dim_,
          true);
    }
  }

 private:
  // Weights of the slots [c, c + lanes). Returns whether their maximum moved,
  // by `factor_`.
  bool weigh(
      const scalar_t* logits,
      int64_t count,
      int64_t c,
      const Sums<acc_t>& sums) {
    const int64_t stride = params_.logits_stride.row;
    const int64_t some = min_index(kLane, params_.slots - c);
    const auto load = [&](int64_t t) {
      const scalar_t* line = logits + t * stride + c;
      return some == kLane ? load_vector(line) : load_partial(line, some);
    };
    const Vec<acc_t> before = Vec<acc_t>::loadu(sums.top + c);
    // Several maxima, to hide the latency.
    Vec<acc_t> tops[4] = {before, before, before, before};
    int64_t t = 0;
    for (; t + 4 <= count; t += 4) {
      SUBQUAD_UNROLL
      for (int64_t i = 0; i < 4; ++i) {
        tops[i] = at::vec::maximum(tops[i], load(t + i));
      }
    }
    for (; t < count; ++t) {
      tops[0] = at::vec::maximum(tops[0], load(t));
    }
    const Vec<acc_t> top = at::vec::maximum(
        at::vec::maximum(tops[0], tops[1]), at::vec::maximum(tops[2], tops[3]));
    const Vec<acc_t> shift = shift_of(top);
    Vec<acc_t> sum(acc_t(0));
    for (t = 0; t < count; ++t) {
      const Vec<acc_t> weight = exponential(load(t) - shift);
      weight.store(weights_.get() + t * slots_ + c);
      sum = sum + weight;
    }
    const Vec<acc_t> factor = exponential(before - shift);
    at::vec::fmadd(Vec<acc_t>::loadu(sums.total + c), factor, sum)
        .store(sums.total + c);
    top.store(sums.top + c);
    factor.store(factor_.get() + c);
    acc_t old[kLane];
    before.store(old);
    bool moved = false;
    for (int64_t i = 0; i < some; ++i) {
      moved |= old[i] != sums.top[c + i];
    }
    return moved;
  }

  void rescale(acc_t* output) const {
    for (int64_t c = 0; c < params_.slots; ++c) {
      const Vec<acc_t> factor(factor_.get()[c]);
      acc_t* line = output + c * value_dim_;
      for (int64_t m = 0; m < value_dim_; m += kLane) {
        (Vec<acc_t>::loadu(line + m) * factor).store(line + m);
      }
    }
  }

  const SequencePoolParams& params_;
  int64_t slots_;     // rounded to vectors
  int64_t value_dim_; // rounded to vectors
  Values<scalar_t> values_;
  Scratch<acc_t> weights_; // [chunk, C]
  Scratch<acc_t> factor_;  // [C]
};

// Output and lse of one slot from the sums of its row's segments, in order.
template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
void merge_slot(
    const SequencePoolParams& params,
    acc_t* parts,
    int64_t count,
    int64_t slot,
    acc_t* scratch, // [M], padded
    scalar_t* output,
    acc_t* lse) {
  const int64_t width = round_to_lanes<acc_t>(params.value_dim);
  const int64_t size = Sums<acc_t>::size(params);
  const acc_t nothing = -std::numeric_limits<acc_t>::infinity();
  acc_t top = nothing;
  for (int64_t i = 0; i < count; ++i) {
    const acc_t other = Sums<acc_t>(params, parts + i * size).top[slot];
    top = other > top || std::isnan(other) ? other : top;
  }
  acc_t total = 0;
  std::fill_n(scratch, width, acc_t(0));
  for (int64_t i = 0; i < count && top != nothing; ++i) {
    const Sums<acc_t> sums(params, parts + i * size);
    const acc_t factor = std::exp(sums.top[slot] - top);
    total += sums.total[slot] * factor;
    const acc_t* line = sums.output + slot * width;
    for (int64_t m = 0; m < width; m += kLanes<acc_t>) {
      at::vec::fmadd(
          Vec<acc_t>::loadu(line + m),
          Vec<acc_t>(factor),
          Vec<acc_t>::loadu(scratch + m))
          .store(scratch + m);
    }
  }
  if (total == 0) {
    std::fill_n(output, params.value_dim, scalar_t(0));
    *lse = nothing;
    return;
  }
  store_row(scratch, params.value_dim, output, acc_t(1) / total);
  *lse = top + std::log(total);
}

template <typename scalar_t>
void forward(const SequencePoolParams& params) {
  using acc_t = at::opmath_type<scalar_t>;
  const RowTiles segments(params.spans, params.rows, params.length, kSegment);
  const int64_t size = Sums<acc_t>::size(params);
  const Scratch<acc_t> parts(params.heads * segments.size() * size);
  at::parallel_for(
      0,
      params.heads * segments.size(),
      grain_of(params, min_index(params.length, kSegment)),
      [&](int64_t begin, int64_t end) {
        Forward<scalar_t> worker(params);
        for (int64_t i = begin; i < end; ++i) {
          worker.run(
              segments[i % segments.size()],
              i / segments.size(),
              Sums<acc_t>(params, parts.get() + i * size));
        }
      });
  const int64_t slots = params.slots;
  at::parallel_for(
      0,
      params.rows * params.heads * slots,
      grain_of(params, 1),
      [&](int64_t begin, int64_t end) {
        const Scratch<acc_t> scratch(round_to_lanes<acc_t>(params.value_dim));
        for (int64_t i = begin; i < end; ++i) {
          const int64_t head = i / slots % params.heads;
          const Range range = segments.of_row(i / slots / params.heads);
          merge_slot<scalar_t>(
              params,
              parts.get() + (head * segments.size() + range.begin) * size,
              range.end - range.begin,
              i % slots,
              scratch.get(),
              static_cast<scalar_t*>(params.output) + i * params.value_dim,
              static_cast<acc_t*>(params.lse) + i);
        }
      });
}

// With p = exp(logit - lse), o the output and s the log-sum-exp, for every
// token and slot:
//   dlogit = p (do . v - do . o + ds),   dv = sum over slots and heads of p do
template <typename scalar_t>
class Backward {
 public:
  using acc_t = at::opmath_type<scalar_t>;
  static constexpr int64_t kLane = kLanes<acc_t>;

  Backward(
      const SequencePoolParams& params,
      const SequencePoolGradients& gradients)
      : params_(params),
        gradients_(gradients),
        group_(params.heads / params.value_heads),
        slots_(round_to_lanes<acc_t>(params.slots)),
        value_dim_(round_to_lanes<acc_t>(params.value_dim)),
        grad_(group_ * params.slots * value_dim_),
        panels_(group_ * slots_ * params.value_dim),
        lse_(group_ * slots_),
        constant_(group_ * slots_),
        values_(params.value_dim),
        weights_(kChunk * slots_),
        product_(kChunk * slots_),
        grad_value_(kChunk * value_dim_) {}

  void run(const RowTile& segment, int64_t value_head) {
    const int64_t batch = params_.packed ? 0 : segment.row;
    if (segment.row != row_ || value_head != value_head_) {
      enter(segment.row, value_head);
    }
    for (int64_t begin = segment.begin; begin < segment.end; begin += kChunk) {
      const int64_t count = min_index(kChunk, segment.end - begin);
      values_.load(
          token_at(
              static_cast<const scalar_t*>(params_.value),
              params_.value_stride,
              batch,
              value_head,
              begin),
          params_.value_stride.row,
          count);
      for (int64_t g = 0; g < group_; ++g) {
        differentiate(batch, begin, count, g);
        if (gradients_.grad_value != nullptr) {
          multiply<acc_t>(
              count,
              value_dim_ / kLane,
              params_.slots,
              weights_.get(),
              slots_,
              1,
              grad_.get() + g * params_.slots * value_dim_,
              value_dim_,
              kLane,
              grad_value_.get(),
              value_dim_,
              g > 0);
        }
      }
      if (gradients_.grad_value != nullptr) {
        scalar_t* target = token_at(
            static_cast<scalar_t*>(gradients_.grad_value),
            gradients_.grad_value_stride,
            batch,
            value_head,
            begin);
        for (int64_t t = 0; t < count; ++t) {
          store_row(
              grad_value_.get() + t * value_dim_,
              params_.value_dim,
              target + t * gradients_.grad_value_stride.row);
        }
      }
    }
  }

 private:
  // What belongs to the slots of the heads that share a value head. A slot
  // whose logits are all -inf has constant results.
  void enter(int64_t row, int64_t value_head) {
    row_ = row;
    value_head_ = value_head;
    const int64_t C = params_.slots;
    const int64_t M = params_.value_dim;
    const acc_t infinity = std::numeric_limits<acc_t>::infinity();
    for (int64_t g = 0; g < group_; ++g) {
      const int64_t line = // of slot 0
          (row * params_.heads + value_head * group_ + g) * C;
      const auto* lse = static_cast<const acc_t*>(params_.lse) + line;
      const auto* output =
          static_cast<const scalar_t*>(params_.output) + line * M;
      acc_t* grad = grad_.get() + g * C * value_dim_;
      acc_t* own_lse = lse_.get() + g * slots_;
      acc_t* constant = constant_.get() + g * slots_;
      std::fill_n(own_lse, slots_, acc_t(0));
      std::fill_n(constant, slots_, acc_t(0));
      for (int64_t c = 0; c < C; ++c) {
        acc_t* own = grad + c * value_dim_;
        if (lse[c] == -infinity) {
          own_lse[c] = infinity; // weights of 0
          std::fill_n(own, value_dim_, acc_t(0));
          continue;
        }
        own_lse[c] = lse[c];
        if (gradients_.grad_lse != nullptr) {
          constant[c] =
              static_cast<const acc_t*>(gradients_.grad_lse)[line + c];
        }
        if (gradients_.grad_output == nullptr) {
          std::fill_n(own, value_dim_, acc_t(0));
          continue;
        }
        load_row(
            static_cast<const scalar_t*>(gradients_.grad_output) +
                (line + c) * M,
            M,
            own);
        constant[c] -= dot(own, output + c * M);
      }
      for (int64_t c = 0; c < C; c += kLane) {
        pack_panel(
            grad + c * value_dim_,
            value_dim_,
            min_index(kLane, C - c),
            M,
            panels_.get() + (g * slots_ + c) * M);
      }
    }
  }

  // Over M elements; `padded` has zeros after them.
  acc_t dot(const acc_t* padded, const scalar_t* other) const {
    Vec<acc_t> sum(acc_t(0));
    const int64_t M = params_.value_dim;
    for (int64_t m = 0; m < M; m += kLane) {
      const Vec<acc_t> x = Vec<acc_t>::loadu(padded + m);
      const Vec<acc_t> y = m + kLane <= M ? load_vector(other + m)
                                          : load_partial(other + m, M - m);
      sum = at::vec::fmadd(x, y, sum);
    }
    return reduce_sum(sum);
  }

  // Weights of a chunk, and the gradient of its logits.
  void differentiate(int64_t batch, int64_t begin, int64_t count, int64_t g) {
    const int64_t C = params_.slots;
    const int64_t head = value_head_ * group_ + g;
    const scalar_t* logits = token_at(
        static_cast<const scalar_t*>(params_.logits),
        params_.logits_stride,
        batch,
        head,
        begin);
    scalar_t* target = nullptr;
    if (gradients_.grad_logits != nullptr) {
      target = token_at(
          static_cast<scalar_t*>(gradients_.grad_logits),
          gradients_.grad_logits_stride,
          batch,
          head,
          begin);
      multiply<acc_t>(
          count,
          slots_ / kLane,
          params_.value_dim,
          values_.data(),
          values_.stride(),
          1,
          panels_.get() + g * slots_ * params_.value_dim,
          kLane,
          kLane * params_.value_dim,
          product_.get(),
          slots_,
          false);
    }
    for (int64_t c = 0; c < C; c += kLane) {
      const int64_t some = min_index(kLane, C - c);
      const Vec<acc_t> lse = Vec<acc_t>::loadu(lse_.get() + g * slots_ + c);
      const Vec<acc_t> constant =
          Vec<acc_t>::loadu(constant_.get() + g * slots_ + c);
      for (int64_t t = 0; t < count; ++t) {
        const scalar_t* line = logits + t * params_.logits_stride.row + c;
        const Vec<acc_t> logit =
            some == kLane ? load_vector(line) : load_partial(line, some);
        const Vec<acc_t> weight = exponential(logit - lse);
        weight.store(weights_.get() + t * slots_ + c);
        if (target != nullptr) {
          const Vec<acc_t> product =
              Vec<acc_t>::loadu(product_.get() + t * slots_ + c);
          store_partial(
              target + t * gradients_.grad_logits_stride.row + c,
              weight * (product + constant),
              some);
        }
      }
    }
  }

  const SequencePoolParams& params_;
  const SequencePoolGradients& gradients_;
  int64_t group_;     // heads that share a value head
  int64_t slots_;     // rounded to vectors
  int64_t value_dim_; // rounded to vectors
  int64_t row_ = -1;
  int64_t value_head_ = -1;
  Scratch<acc_t> grad_;     // [group, C, M]: do
  Scratch<acc_t> panels_;   // [group, C / lanes, M, lanes]: do
  Scratch<acc_t> lse_;      // [group, C]
  Scratch<acc_t> constant_; // [group, C]: ds - do . o
  Values<scalar_t> values_;
  Scratch<acc_t> weights_;    // [chunk, C]
  Scratch<acc_t> product_;    // [chunk, C]: do . v
  Scratch<acc_t> grad_value_; // [chunk, M]
};

template <typename scalar_t>
void backward(
    const SequencePoolParams& params,
    const SequencePoolGradients& gradients) {
  const RowTiles segments(params.spans, params.rows, params.length, kSegment);
  at::parallel_for(
      0,
      params.value_heads * segments.size(),
      grain_of(params, min_index(params.length, kSegment)),
      [&](int64_t begin, int64_t end) {
        Backward<scalar_t> worker(params, gradients);
        for (int64_t i = begin; i < end; ++i) {
          worker.run(segments[i % segments.size()], i / segments.size());
        }
      });
}

void forward_kernel(const SequencePoolParams& params, c10::ScalarType dtype) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, dtype, "sequence_pool", [&] {
        forward<scalar_t>(params);
      });
}

void backward_kernel(
    const SequencePoolParams& params,
    const SequencePoolGradients& gradients,
    c10::ScalarType dtype) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, dtype, "sequence_pool_backward", [&] {
        backward<scalar_t>(params, gradients);
      });
}

} // namespace

} // namespace subquad

namespace at::native {

ALSO_REGISTER_AVX512_DISPATCH(
    subquad_sequence_pool_forward_stub,
    &subquad::forward_kernel)
ALSO_REGISTER_AVX512_DISPATCH(
    subquad_sequence_pool_backward_stub,
    &subquad::backward_kernel)

} // namespace at::native
