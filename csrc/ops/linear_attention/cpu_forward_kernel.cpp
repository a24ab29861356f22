#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include "ops/linear_attention/cpu_kernel.h"
#include "ops/linear_attention/cpu_tile.h"

namespace subquad {

namespace {

// One thread's memory and the walk over the chunks of a lane.
template <typename scalar_t>
class Worker {
 public:
  using acc_t = at::opmath_type<scalar_t>;

  explicit Worker(const LinearAttentionParams& params)
      : params_(params),
        cuts_(params.causal ? params.blindspot : 1),
        query_features_(params.query_rule, params.head_dim, params.scale),
        key_features_(params.key_rule, params.head_dim, 1.0),
        features_(params.features),
        feature_row_(round_to_lanes<acc_t>(params.features)),
        value_row_(round_to_lanes<acc_t>(params.value_dim)),
        matrix_(features_ * value_row_),
        query_(kChunk * feature_row_),
        key_(kChunk * feature_row_),
        scaled_key_(kChunk * feature_row_),
        panels_(round_to_lanes<acc_t>(kChunk) * features_),
        value_(kChunk * value_row_),
        pairs_(kChunk * round_to_lanes<acc_t>(kChunk)),
        output_(kChunk * value_row_),
        visible_(matrix_ + feature_row_) {}

  // Elements of a state's sums.
  int64_t size() const {
    return matrix_ + feature_row_;
  }

  const Cuts& cuts() const {
    return cuts_;
  }

  // local = sums over the keys [begin, end), in the log scale of the last.
  void sum_keys(
      const Lane<scalar_t>& lane,
      int64_t begin,
      int64_t end,
      acc_t* local) {
    std::fill(local, local + size(), acc_t(0));
    while (begin < end) {
      const int64_t next = cuts_.chunk_end(begin, end);
      load_keys(lane, begin, next - begin);
      add_keys(lane, begin, next - begin, local);
      begin = next;
    }
  }

  // Results of the queries of a segment. `before` are the sums of everything
  // before it; `local` becomes the segment's own, as in sum_keys, over the keys
  // that the row's new state sums.
  void causal_segment(
      const Lane<scalar_t>& lane,
      int64_t begin,
      const acc_t* before,
      acc_t* local) {
    const int64_t length = lane.keys.length;
    const int64_t end = min_index(begin + cuts_.segment(), length);
    const int64_t summed = state_end(true, params_.blindspot, length);
    const acc_t before_scale = lane.log_scale_before(begin);
    std::fill(local, local + size(), acc_t(0));
    while (begin < end) {
      const int64_t next = cuts_.chunk_end(begin, end);
      const int64_t count = next - begin;
      if (cuts_.complete(begin)) {
        combine(
            before,
            decay(before_scale, lane.log_scale_before(begin)),
            local,
            size(),
            visible_.get());
      }
      load_keys(lane, begin, count);
      pack_panels(key_.get(), feature_row_, count, features_, panels_.get());
      const Sight sight{params_.blindspot, begin, count};
      const bool finite =
          all_finite(value_.get(), value_row_, count, params_.value_dim);
      const int64_t group = params_.heads / params_.key_heads;
      for (int64_t g = 0; g < group; ++g) {
        const int64_t head = lane.query_head(params_, g);
        load_queries(lane, head, begin, count);
        causal_chunk(lane, head, sight, finite);
      }
      add_keys(lane, begin, min_index(count, summed - begin), local);
      begin = next;
    }
  }

  // A row of one token, as decoding has it: the new state and the result in one
  // pass over the state. `state` and `sums` are null without one.
  void step(
      const Lane<scalar_t>& lane,
      const acc_t* state,
      const acc_t* sums,
      acc_t* new_state,
      acc_t* new_sums) {
    load_keys(lane, 0, 1);
    const int64_t width = params_.value_dim;
    const acc_t factor =
        decay(lane.log_scale_before(0), lane.log_scale_before(1));
    const bool begins = state == nullptr || factor == acc_t(0);
    for (int64_t f = 0; f < features_; ++f) {
      const acc_t key = key_.get()[f];
      new_sums[f] = begins ? key : key + factor * sums[f];
      acc_t* row = new_state + f * width;
      const acc_t* old = begins ? nullptr : state + f * width;
      const Vec<acc_t> scale(begins ? acc_t(0) : factor);
      const Vec<acc_t> part(key);
      for (int64_t m = 0; m < width; m += kLanes<acc_t>) {
        const int64_t count = min_index(width - m, kLanes<acc_t>);
        Vec<acc_t> sum = part * Vec<acc_t>::loadu(value_.get() + m);
        if (!begins) {
          sum = at::vec::fmadd(Vec<acc_t>::loadu(old + m, count), scale, sum);
        }
        sum.store(row + m, static_cast<int>(count));
      }
    }
    const int64_t group = params_.heads / params_.key_heads;
    for (int64_t g = 0; g < group; ++g) {
      const int64_t head = lane.query_head(params_, g);
      load_queries(lane, head, 0, 1);
      acc_t* denominator = lane.at_query_lines(
          static_cast<acc_t*>(params_.denominator), params_, head);
      *denominator = acc_t(0);
      for (int64_t f = 0; f < features_; ++f) {
        *denominator += query_.get()[f] * new_sums[f];
      }
      for (int64_t m = 0; m < width; m += kLanes<acc_t>) {
        const int64_t count = min_index(width - m, kLanes<acc_t>);
        Vec<acc_t> sum(acc_t(0));
        for (int64_t f = 0; f < features_; ++f) {
          sum = at::vec::fmadd(
              Vec<acc_t>(query_.get()[f]),
              Vec<acc_t>::loadu(new_state + f * width + m, count),
              sum);
        }
        sum.store(output_.get() + m);
      }
      finish(lane, head, 0, 1);
    }
  }

  // Results of the queries [begin, end) that all see the same sums.
  void queries(
      const Lane<scalar_t>& lane,
      int64_t head,
      int64_t begin,
      int64_t end,
      const acc_t* sums) {
    for (; begin < end; begin += kChunk) {
      const int64_t count = min_index(end - begin, kChunk);
      load_queries(lane, head, begin, count);
      multiply_state(sums, count);
      acc_t* denominator = lane.at_query_lines(
          static_cast<acc_t*>(params_.denominator), params_, head);
      for (int64_t i = 0; i < count; ++i) {
        denominator[begin + i] =
            dot(query_.get() + i * feature_row_, sums + matrix_, feature_row_);
      }
      finish(lane, head, begin, count);
    }
  }

 private:
  void load_keys(const Lane<scalar_t>& lane, int64_t begin, int64_t count) {
    subquad::load_keys(
        params_, lane, key_features_, begin, count, key_.get(), value_.get());
  }

  void load_queries(
      const Lane<scalar_t>& lane,
      int64_t head,
      int64_t begin,
      int64_t count) {
    load_query_features(
        params_, lane, query_features_, head, begin, count, query_.get());
  }

  // local += the chunk's keys and values, of which the first `count` count.
  void add_keys(
      const Lane<scalar_t>& lane,
      int64_t begin,
      int64_t count,
      acc_t* local) {
    if (count <= 0) {
      return;
    }
    const acc_t* keys = key_.get();
    if (lane.log_scale != nullptr) {
      const acc_t last = lane.log_scale[begin + count - 1];
      const acc_t first = lane.log_scale_before(begin);
      scale_in_place(local, size(), decay(first, last));
      if (lane.log_scale[begin] != last) {
        for (int64_t i = 0; i < count; ++i) {
          const acc_t factor = decay(lane.log_scale[begin + i], last);
          const Vec<acc_t> scale(factor);
          for (int64_t f = 0; f < feature_row_; f += kLanes<acc_t>) {
            (Vec<acc_t>::loadu(keys + i * feature_row_ + f) * scale)
                .store(scaled_key_.get() + i * feature_row_ + f);
          }
        }
        keys = scaled_key_.get();
      }
    }
    multiply(
        features_,
        value_row_ / kLanes<acc_t>,
        count,
        keys,
        int64_t{1},
        feature_row_,
        value_.get(),
        value_row_,
        kLanes<acc_t>,
        local,
        value_row_,
        true);
    for (int64_t i = 0; i < count; ++i) {
      add_scaled(
          keys + i * feature_row_, acc_t(1), feature_row_, local + matrix_);
    }
  }

  // output = queries times the sums
  void multiply_state(const acc_t* sums, int64_t count) {
    multiply(
        count,
        value_row_ / kLanes<acc_t>,
        features_,
        query_.get(),
        feature_row_,
        int64_t{1},
        sums,
        value_row_,
        kLanes<acc_t>,
        output_.get(),
        value_row_,
        false);
  }

  void causal_chunk(
      const Lane<scalar_t>& lane,
      int64_t head,
      const Sight& sight,
      bool finite) {
    constexpr int64_t kStride = kChunk; // a multiple of every kLanes
    multiply_pairs(
        sight,
        query_.get(),
        feature_row_,
        features_,
        panels_.get(),
        pairs_.get(),
        kStride);
    acc_t* denominator =
        lane.at_query_lines(
            static_cast<acc_t*>(params_.denominator), params_, head) +
        sight.begin;
    multiply_state(visible_.get(), sight.count);
    for (int64_t i = 0; i < sight.count; ++i) {
      denominator[i] =
          dot(query_.get() + i * feature_row_,
              visible_.get() + matrix_,
              feature_row_);
    }
    if (lane.log_scale != nullptr) {
      const acc_t* log_scale = lane.log_scale + sight.begin;
      decay_pairs(sight, log_scale, pairs_.get(), kStride);
      const acc_t before = lane.log_scale_before(sight.begin);
      if (before != log_scale[sight.count - 1]) {
        for (int64_t i = 0; i < sight.count; ++i) {
          const acc_t factor = decay(before, log_scale[i]);
          scale_in_place(output_.get() + i * value_row_, value_row_, factor);
          denominator[i] *= factor;
        }
      }
    }
    multiply_seen_keys(
        sight,
        pairs_.get(),
        kStride,
        value_.get(),
        value_row_,
        value_row_ / kLanes<acc_t>,
        finite,
        output_.get(),
        value_row_);
    for (int64_t i = 0; i < sight.count; ++i) {
      Vec<acc_t> sum(acc_t(0));
      for (int64_t j = 0; j < sight.end(i); j += kLanes<acc_t>) {
        sum = sum + Vec<acc_t>::loadu(pairs_.get() + i * kStride + j);
      }
      denominator[i] += reduce_sum(sum);
    }
    finish(lane, head, sight.begin, sight.count);
  }

  // Writes output / denominator.
  void finish(
      const Lane<scalar_t>& lane,
      int64_t head,
      int64_t begin,
      int64_t count) {
    const acc_t* denominator = lane.at_query_lines(
        static_cast<const acc_t*>(params_.denominator), params_, head);
    scalar_t* output = lane.at_queries(
        static_cast<scalar_t*>(params_.output), params_.output_stride, head);
    for (int64_t i = 0; i < count; ++i) {
      const acc_t factor = params_.normalize
          ? inverse_denominator(
                denominator[begin + i], static_cast<acc_t>(params_.floor))
          : acc_t(1);
      store_row(
          output_.get() + i * value_row_,
          params_.value_dim,
          output + (begin + i) * params_.output_stride.row,
          factor);
    }
  }

  const LinearAttentionParams& params_;
  Cuts cuts_;
  FeatureTile<scalar_t> query_features_;
  FeatureTile<scalar_t> key_features_;
  int64_t features_;
  int64_t feature_row_;  // features to whole vectors
  int64_t value_row_;    // M to whole vectors
  int64_t matrix_;       // elements of the sums' matrix [features, value_row]
  Scratch<acc_t> query_; // [kChunk, feature_row]
  Scratch<acc_t> key_;   // [kChunk, feature_row]
  Scratch<acc_t> scaled_key_; // [kChunk, feature_row]
  Scratch<acc_t> panels_;     // [kChunk / lanes][features][lanes]
  Scratch<acc_t> value_;      // [kChunk, value_row]
  Scratch<acc_t> pairs_;      // [kChunk, kChunk]
  Scratch<acc_t> output_;     // [kChunk, value_row]
  Scratch<acc_t> visible_;    // sums that the queries of a chunk see
};

// The state that a lane begins with, as sums, and the one it leaves.
template <typename acc_t>
class States {
 public:
  explicit States(const LinearAttentionParams& params)
      : params_(params),
        features_(params.features),
        value_row_(round_to_lanes<acc_t>(params.value_dim)) {}

  void load(int64_t lane, acc_t* sums) const {
    std::fill(
        sums,
        sums + features_ * value_row_ + round_to_lanes<acc_t>(features_),
        acc_t(0));
    if (params_.state_kv == nullptr) {
      return;
    }
    pack_rows(
        kv(lane),
        params_.value_dim,
        features_,
        params_.value_dim,
        sums,
        value_row_);
    load_row(k(lane), features_, sums + features_ * value_row_);
  }

  const acc_t* kv(int64_t lane) const {
    return offset(params_.state_kv, lane * features_ * params_.value_dim);
  }

  const acc_t* k(int64_t lane) const {
    return offset(params_.state_k, lane * features_);
  }

  acc_t* new_kv(int64_t lane) const {
    return static_cast<acc_t*>(params_.new_state_kv) +
        lane * features_ * params_.value_dim;
  }

  acc_t* new_k(int64_t lane) const {
    return static_cast<acc_t*>(params_.new_state_k) + lane * features_;
  }

  void store_log_scale(int64_t lane, acc_t log_scale) const {
    if (params_.new_state_log_scale != nullptr) {
      static_cast<acc_t*>(params_.new_state_log_scale)[lane] = log_scale;
    }
  }

  void store(int64_t lane, const acc_t* sums, acc_t log_scale) const {
    acc_t* kv = new_kv(lane);
    for (int64_t f = 0; f < features_; ++f) {
      store_row(
          sums + f * value_row_, params_.value_dim, kv + f * params_.value_dim);
    }
    store_row(sums + features_ * value_row_, features_, new_k(lane));
    store_log_scale(lane, log_scale);
  }

 private:
  static const acc_t* offset(const void* table, int64_t elements) {
    return table == nullptr ? nullptr
                            : static_cast<const acc_t*>(table) + elements;
  }

  const LinearAttentionParams& params_;
  int64_t features_;
  int64_t value_row_;
};

template <typename scalar_t>
class Forward {
 public:
  using acc_t = at::opmath_type<scalar_t>;

  explicit Forward(const LinearAttentionParams& params)
      : params_(params),
        states_(params),
        lanes_(params.rows * params.key_heads),
        cuts_(params.causal ? params.blindspot : 1),
        segments_(cuts_.segments(params.key_length)),
        size_(
            params.features * round_to_lanes<acc_t>(params.value_dim) +
            round_to_lanes<acc_t>(params.features)) {}

  void run() {
    if (!params_.causal) {
      everything();
    } else if (lanes_ < at::get_num_threads() && segments_ > 1) {
      causal_at_once();
    } else {
      causal_one_by_one();
    }
  }

 private:
  // after = before, in the later log scale, + local
  void advance(
      const Lane<scalar_t>& lane,
      int64_t segment,
      const acc_t* local,
      acc_t* sums) const {
    const int64_t begin = segment * cuts_.segment();
    const int64_t end = min_index(begin + cuts_.segment(), lane.keys.length);
    combine(
        sums,
        decay(lane.log_scale_before(begin), lane.log_scale_before(end)),
        local,
        size_,
        sums);
  }

  // Whether a row is one step. It is computed as such wherever it stands.
  bool single(const Lane<scalar_t>& lane) const {
    return lane.keys.length == 1 && params_.blindspot == 1;
  }

  void step(Worker<scalar_t>& worker, const Lane<scalar_t>& lane, int64_t index)
      const {
    worker.step(
        lane,
        states_.kv(index),
        states_.k(index),
        states_.new_kv(index),
        states_.new_k(index));
    states_.store_log_scale(index, lane.log_scale_before(1));
  }

  void causal_one_by_one() {
    at::parallel_for(
        0,
        lanes_,
        lane_grain(params_, params_.key_length),
        [&](int64_t begin, int64_t end) {
          Worker<scalar_t> worker(params_);
          Scratch<acc_t> sums(size_);
          Scratch<acc_t> local(size_);
          for (int64_t index = begin; index < end; ++index) {
            const Lane<scalar_t> lane(params_, index);
            if (single(lane)) {
              step(worker, lane, index);
              continue;
            }
            states_.load(index, sums.get());
            for (int64_t s = 0; s < cuts_.segments(lane.keys.length); ++s) {
              worker.causal_segment(
                  lane, s * cuts_.segment(), sums.get(), local.get());
              advance(lane, s, local.get(), sums.get());
            }
            states_.store(
                index, sums.get(), lane.log_scale_before(lane.keys.length));
          }
        });
  }

  // Local sums of all segments, [lanes, segments, size].
  Scratch<acc_t> sum_segments() {
    Scratch<acc_t> all(lanes_ * segments_ * size_);
    at::parallel_for(
        0,
        lanes_ * segments_,
        lane_grain(params_, cuts_.segment()),
        [&](int64_t begin, int64_t end) {
          Worker<scalar_t> worker(params_);
          for (int64_t task = begin; task < end; ++task) {
            const Lane<scalar_t> lane(params_, task / segments_);
            const int64_t summed = state_end(
                params_.causal,
                params_.causal ? params_.blindspot : 1,
                lane.keys.length);
            const int64_t first = task % segments_ * cuts_.segment();
            worker.sum_keys(
                lane,
                first,
                min_index(first + cuts_.segment(), summed),
                all.get() + task * size_);
          }
        });
    return all;
  }

  // Turns the segments' own sums into those of everything before each, and
  // leaves the row's in `sums`.
  void fold(const Lane<scalar_t>& lane, int64_t index, acc_t* all, acc_t* sums)
      const {
    Scratch<acc_t> local(size_);
    states_.load(index, sums);
    for (int64_t s = 0; s < cuts_.segments(lane.keys.length); ++s) {
      acc_t* segment = all + (index * segments_ + s) * size_;
      std::copy(segment, segment + size_, local.get());
      std::copy(sums, sums + size_, segment);
      advance(lane, s, local.get(), sums);
    }
    states_.store(index, sums, lane.log_scale_before(lane.keys.length));
  }

  void causal_at_once() {
    const Scratch<acc_t> all = sum_segments();
    at::parallel_for(0, lanes_, 1, [&](int64_t begin, int64_t end) {
      Worker<scalar_t> worker(params_);
      Scratch<acc_t> sums(size_);
      for (int64_t index = begin; index < end; ++index) {
        const Lane<scalar_t> lane(params_, index);
        if (single(lane)) {
          step(worker, lane, index);
        } else {
          fold(lane, index, all.get(), sums.get());
        }
      }
    });
    at::parallel_for(0, lanes_ * segments_, 1, [&](int64_t begin, int64_t end) {
      Worker<scalar_t> worker(params_);
      Scratch<acc_t> local(size_);
      for (int64_t task = begin; task < end; ++task) {
        const Lane<scalar_t> lane(params_, task / segments_);
        const int64_t first = task % segments_ * cuts_.segment();
        if (first < lane.keys.length && !single(lane)) {
          worker.causal_segment(
              lane, first, all.get() + task * size_, local.get());
        }
      }
    });
  }

  void everything() {
    const Scratch<acc_t> all = sum_segments();
    Scratch<acc_t> totals(lanes_ * size_);
    at::parallel_for(
        0,
        lanes_,
        lane_grain(params_, segments_),
        [&](int64_t begin, int64_t end) {
          for (int64_t index = begin; index < end; ++index) {
            fold(
                Lane<scalar_t>(params_, index),
                index,
                all.get(),
                totals.get() + index * size_);
          }
        });
    const int64_t group = params_.heads / params_.key_heads;
    const int64_t tiles = ceil_divide(params_.query_length, kSegment);
    at::parallel_for(
        0,
        lanes_ * group * tiles,
        lane_grain(params_, min_index(params_.query_length, kSegment)),
        [&](int64_t begin, int64_t end) {
          Worker<scalar_t> worker(params_);
          for (int64_t task = begin; task < end; ++task) {
            const int64_t index = task / tiles / group;
            const Lane<scalar_t> lane(params_, index);
            const int64_t first = task % tiles * kSegment;
            worker.queries(
                lane,
                lane.query_head(params_, task / tiles % group),
                first,
                min_index(first + kSegment, lane.queries.length),
                totals.get() + index * size_);
          }
        });
  }

  const LinearAttentionParams& params_;
  States<acc_t> states_;
  int64_t lanes_;
  Cuts cuts_;
  int64_t segments_; // of the longest row
  int64_t size_;     // elements of a state's sums
};

void forward_kernel(
    const LinearAttentionParams& params,
    c10::ScalarType dtype) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, dtype, "linear_attention", [&] {
        Forward<scalar_t>(params).run();
      });
}

} // namespace

} // namespace subquad

namespace at::native {

ALSO_REGISTER_AVX512_DISPATCH(
    subquad_linear_attention_forward_stub,
    &subquad::forward_kernel)

} // namespace at::native
