#pragma once

#include <algorithm>

#include "common/window_segments.h"
#include "cpu/pack.h"
#include "ops/window_attention/cpu_rows.h"

// Where the backward pass of window attention adds up the gradients of keys.
// Included by units that are compiled per instruction set, hence anonymous.
namespace subquad {

namespace {

// The parts of gradients that several segments share, in the accumulation type.
// Widths are rounded to whole vectors.
template <typename acc_t>
struct SharedKeys {
  int64_t keys; // of all segments, for one key head
  acc_t* key;   // [Hkv, keys, D]
  acc_t* value; // [Hkv, keys, M]
  acc_t* bias;  // [Hkv, keys]
};

// Writes finished gradients of keys.
template <typename scalar_t>
struct KeyGradientWriter {
  using acc_t = at::opmath_type<scalar_t>;

  const WindowAttentionParams& params;
  const WindowAttentionGradients& gradients;
  acc_t* key_bias; // [Hkv, B, S] or null

  // `token` on the tensor's axis; null sources stand for zeros.
  void write(
      int64_t batch,
      int64_t key_head,
      int64_t token,
      const acc_t* key,
      const acc_t* value,
      acc_t bias) const {
    if (gradients.grad_key != nullptr) {
      write_row(
          gradients.grad_key,
          gradients.grad_key_stride,
          batch,
          key_head,
          token,
          key,
          params.head_dim);
    }
    if (gradients.grad_value != nullptr) {
      write_row(
          gradients.grad_value,
          gradients.grad_value_stride,
          batch,
          key_head,
          token,
          value,
          params.value_dim);
    }
    if (key_bias != nullptr) {
      key_bias[(key_head * params.batch + batch) * params.key_length + token] =
          bias;
    }
  }

  void clear(int64_t batch, int64_t key_head, const Range& tokens) const {
    for (int64_t token = tokens.begin; token < tokens.end; ++token) {
      write(batch, key_head, token, nullptr, nullptr, acc_t(0));
    }
  }

 private:
  static void write_row(
      void* gradient,
      const Strides& stride,
      int64_t batch,
      int64_t head,
      int64_t token,
      const acc_t* source,
      int64_t width) {
    scalar_t* target = static_cast<scalar_t*>(gradient) + batch * stride.batch +
        head * stride.head + token * stride.row;
    if (source == nullptr) {
      std::fill(target, target + width, scalar_t(0));
    } else {
      store_row(source, width, target);
    }
  }
};

// Sums of the gradients of a moving range of keys, in units of kLanes keys.
// Keys that the range leaves behind are written out: to the gradients when the
// segment owns them, else to the workspace.
template <typename scalar_t>
class KeyGradients {
 public:
  using acc_t = at::opmath_type<scalar_t>;
  static constexpr int64_t kUnit = kLanes<acc_t>;

  KeyGradients(
      const KeyGradientWriter<scalar_t>& writer,
      const SharedKeys<acc_t>& shared,
      int64_t keys) // most that `begin` or `cover` will ask for
      : writer_(writer),
        shared_(shared),
        key_width_(round_to_lanes<acc_t>(writer.params.head_dim)),
        value_width_(round_to_lanes<acc_t>(writer.params.value_dim)),
        capacity_(2 * (round_to_lanes<acc_t>(keys) + 2 * kUnit)),
        key_(capacity_ * key_width_),
        value_(capacity_ * value_width_),
        bias_(capacity_) {}

  void begin(const WindowSegment& segment, const HeadRow& at) {
    segment_ = &segment;
    at_ = at;
    base_ = first_ = end_ = segment.keys.begin / kUnit * kUnit;
    written_ = segment.keys.begin;
  }

  // Makes room for `keys`; without order nothing is written before `finish`.
  void cover(const Range& keys) {
    const int64_t first =
        segment_->ordered ? keys.begin / kUnit * kUnit : first_;
    const int64_t last = round_to_lanes<acc_t>(keys.end);
    if (segment_->ordered) {
      write_until(first);
    }
    if (last > base_ + capacity_) {
      const int64_t kept = max_index(end_ - first, 0);
      move(key_.get(), key_width_, first, kept);
      move(value_.get(), value_width_, first, kept);
      move(bias_.get(), 1, first, kept);
      base_ = first;
      end_ = first + kept;
    }
    if (end_ < first) {
      end_ = first;
    }
    first_ = first;
    if (last > end_) {
      std::fill(key(end_), key(last), acc_t(0));
      std::fill(value(end_), value(last), acc_t(0));
      std::fill(bias(end_), bias(last), acc_t(0));
      end_ = last;
    }
  }

  void finish() {
    write_until(segment_->keys.end);
  }

  acc_t* key(int64_t index) const {
    return key_.get() + (index - base_) * key_width_;
  }

  acc_t* value(int64_t index) const {
    return value_.get() + (index - base_) * value_width_;
  }

  acc_t* bias(int64_t index) const {
    return bias_.get() + (index - base_);
  }

 private:
  void move(acc_t* data, int64_t width, int64_t first, int64_t count) const {
    std::copy(
        data + (first - base_) * width,
        data + (first - base_ + count) * width,
        data);
  }

  void write_until(int64_t limit) {
    limit = min_index(limit, segment_->keys.end);
    for (; written_ < limit; ++written_) {
      const bool summed = written_ < end_;
      const acc_t* key_sum = summed ? key(written_) : nullptr;
      const acc_t* value_sum = summed ? value(written_) : nullptr;
      const acc_t bias_sum = summed ? *bias(written_) : acc_t(0);
      if (segment_->owns(written_)) {
        writer_.write(
            at_.batch,
            at_.key_head,
            at_.keys.start + written_,
            key_sum,
            value_sum,
            bias_sum);
        continue;
      }
      const int64_t place =
          at_.key_head * shared_.keys + segment_->shared_index(written_);
      keep(key_sum, key_width_, shared_.key, place);
      keep(value_sum, value_width_, shared_.value, place);
      shared_.bias[place] = bias_sum;
    }
  }

  static void
  keep(const acc_t* source, int64_t width, acc_t* workspace, int64_t place) {
    acc_t* target = workspace + place * width;
    if (source == nullptr) {
      std::fill(target, target + width, acc_t(0));
    } else {
      std::copy(source, source + width, target);
    }
  }

  const KeyGradientWriter<scalar_t>& writer_;
  SharedKeys<acc_t> shared_;
  int64_t key_width_;
  int64_t value_width_;
  int64_t capacity_; // keys
  Scratch<acc_t> key_;
  Scratch<acc_t> value_;
  Scratch<acc_t> bias_;

  const WindowSegment* segment_ = nullptr;
  HeadRow at_{};
  int64_t base_ = 0;  // the key at the start of the buffers
  int64_t first_ = 0; // keys [first, end) hold sums
  int64_t end_ = 0;
  int64_t written_ = 0; // keys before this one are written
};

// Second pass: the keys that `segment` finishes, summed over segments in order.
template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
void merge_shared_keys(
    const WindowSegment* segments,
    const WindowSegment& segment,
    const KeyGradientWriter<scalar_t>& writer,
    const SharedKeys<acc_t>& shared,
    const HeadRow& at,
    acc_t* sum) { // [D + M], rounded to vectors
  const int64_t key_width = round_to_lanes<acc_t>(writer.params.head_dim);
  const int64_t value_width = round_to_lanes<acc_t>(writer.params.value_dim);
  for (int64_t key = segment.merged.begin; key < segment.merged.end; ++key) {
    std::fill(sum, sum + key_width + value_width, acc_t(0));
    acc_t bias = 0;
    for (const WindowSegment* part = segments + segment.first_part;
         part <= &segment;
         ++part) {
      if (key < part->keys.begin || key >= part->keys.end) {
        continue;
      }
      const int64_t place = at.key_head * shared.keys + part->shared_index(key);
      add_row(shared.key + place * key_width, key_width, sum);
      add_row(shared.value + place * value_width, value_width, sum + key_width);
      bias += shared.bias[place];
    }
    writer.write(
        at.batch, at.key_head, at.keys.start + key, sum, sum + key_width, bias);
  }
}

} // namespace

} // namespace subquad
