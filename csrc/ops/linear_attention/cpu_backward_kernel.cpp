#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <vector>

#include "ops/linear_attention/cpu_kernel.h"
#include "ops/linear_attention/cpu_tile.h"

// With dn_i = do_i / d_i and c_i = -(do_i . o_i) / d_i, d_i the denominator
// after the floor (c_i = 0 where the floor holds), w_ij the decay of a pair,
// and features q_i and k_j:
//
//   dq_i = sum_j w_ij (dn_i . v_j + c_i) k_j = dn_i S_i^T + c_i z_i
//   dk_j = sum_i w_ij (dn_i . v_j + c_i) q_i = v_j R_j^T + r_j
//   dv_j = sum_i w_ij (q_i . k_j) dn_i = k_j R_j
//
// where R_j = sum_i w_ij q_i^T dn_i and r_j = sum_i w_ij c_i q_i run backwards.
// A log scale gets k_t . dk_t - q_t . dq_t. States are kept transposed, [M, F],
// because the features are what most products run along.
namespace subquad {

namespace {

// One thread's memory and the walk over the chunks of a lane.
template <typename scalar_t>
class Worker {
 public:
  using acc_t = at::opmath_type<scalar_t>;

  Worker(
      const LinearAttentionParams& params,
      const LinearAttentionGradients& gradients)
      : params_(params),
        gradients_(gradients),
        cuts_(params.causal ? params.blindspot : 1),
        query_features_(params.query_rule, params.head_dim, params.scale),
        key_features_(params.key_rule, params.head_dim, 1.0),
        group_(params.heads / params.key_heads),
        features_(params.features),
        values_(params.value_dim),
        feature_row_(round_to_lanes<acc_t>(params.features)),
        value_row_(round_to_lanes<acc_t>(params.value_dim)),
        matrix_(values_ * feature_row_),
        query_(kChunk * feature_row_),
        key_(kChunk * feature_row_),
        scaled_(kChunk * feature_row_),
        grad_query_(kChunk * feature_row_),
        grad_key_(kChunk * feature_row_),
        key_panels_(round_to_lanes<acc_t>(kChunk) * features_),
        value_(kChunk * value_row_),
        value_panels_(round_to_lanes<acc_t>(kChunk) * values_),
        grad_value_(kChunk * value_row_),
        grad_(kChunk * value_row_),
        grad_denominator_(kChunk),
        pairs_(kChunk * kChunk),
        grad_pairs_(kChunk * kChunk),
        seen_by_(size()),
        seen_by_panels_(round_to_lanes<acc_t>(values_) * features_),
        chunk_begin_(cuts_.chunks() + 1) {}

  int64_t size() const {
    return matrix_ + feature_row_;
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

  // local = sums R and r over the queries [begin, end), all heads of the group,
  // in the log scale before the first.
  void sum_queries(
      const Lane<scalar_t>& lane,
      int64_t begin,
      int64_t end,
      acc_t* local) {
    std::fill(local, local + size(), acc_t(0));
    cut(begin, end);
    for (int64_t c = chunks_ - 1; c >= 0; --c) {
      const int64_t first = chunk_begin_[c];
      const int64_t count = chunk_begin_[c + 1] - first;
      rescale_queries(lane, first, count, local);
      for (int64_t g = 0; g < group_; ++g) {
        load_queries(lane, lane.query_head(params_, g), first, count);
        add_queries(lane, first, count, local);
      }
    }
  }

  // The sums that the queries of each chunk of a segment see, chunk after chunk
  // into `chunks`, from those of everything before it; in `local` the segment's
  // own, of all its keys.
  void sum_before_chunks(
      const Lane<scalar_t>& lane,
      int64_t begin,
      const acc_t* before,
      acc_t* chunks,
      acc_t* local) {
    cut(begin, min_index(begin + cuts_.segment(), lane.keys.length));
    const acc_t before_scale = lane.log_scale_before(begin);
    std::fill(local, local + size(), acc_t(0));
    for (int64_t c = 0; c < chunks_; ++c) {
      const int64_t first = chunk_begin_[c];
      acc_t* chunk = chunks + c * size();
      if (cuts_.complete(first)) {
        combine(
            before,
            decay(before_scale, lane.log_scale_before(first)),
            local,
            size(),
            chunk);
      } else {
        std::copy(chunk - size(), chunk, chunk);
      }
      const int64_t count = chunk_begin_[c + 1] - first;
      load_keys(lane, first, count);
      add_keys(lane, first, count, local);
    }
  }

  // Gradients of a segment. `chunks` are the sums of sum_before_chunks, `after`
  // those over all queries after it, in the log scale of its last token;
  // `local` becomes the segment's own, as in sum_queries.
  void causal_segment(
      const Lane<scalar_t>& lane,
      int64_t begin,
      const acc_t* chunks,
      const acc_t* after,
      acc_t* local) {
    const int64_t length = lane.keys.length;
    const int64_t end = min_index(begin + cuts_.segment(), length);
    const int64_t summed = state_end(true, params_.blindspot, length);
    cut(begin, end);
    std::fill(local, local + size(), acc_t(0));
    for (int64_t c = chunks_ - 1; c >= 0; --c) {
      const int64_t first = chunk_begin_[c];
      const int64_t next = chunk_begin_[c + 1];
      const Sight sight{params_.blindspot, first, next - first};
      if (c == chunks_ - 1 || cuts_.complete(next)) {
        combine(
            after,
            decay(lane.log_scale_before(next), lane.log_scale_before(end)),
            local,
            size(),
            seen_by_.get());
        pack_panels(
            seen_by_.get(),
            feature_row_,
            values_,
            features_,
            seen_by_panels_.get());
      }
      seen_ = chunks + c * size();
      causal_chunk(lane, sight, min_index(summed - first, sight.count), local);
    }
  }

  // Gradients of the queries [begin, end) of a row that all see the same sums,
  // and, in `local`, their R and r.
  void queries(
      const Lane<scalar_t>& lane,
      int64_t begin,
      int64_t end,
      const acc_t* sums,
      acc_t* local) {
    std::fill(local, local + size(), acc_t(0));
    for (; begin < end; begin += kChunk) {
      const int64_t count = min_index(end - begin, kChunk);
      for (int64_t g = 0; g < group_; ++g) {
        const int64_t head = lane.query_head(params_, g);
        load_queries(lane, head, begin, count);
        multiply_state(sums, count);
        add_queries(lane, begin, count, local);
        store_queries(lane, head, begin, count);
      }
    }
  }

  // Gradients of the keys [begin, end) that the queries summed in `sums` see.
  void keys(
      const Lane<scalar_t>& lane,
      int64_t begin,
      int64_t end,
      const acc_t* sums) {
    std::copy(sums, sums + size(), seen_by_.get());
    pack_panels(
        seen_by_.get(),
        feature_row_,
        values_,
        features_,
        seen_by_panels_.get());
    for (; begin < end; begin += kChunk) {
      const int64_t count = min_index(end - begin, kChunk);
      load_keys(lane, begin, count);
      multiply_seen_by_state(count);
      store_keys(lane, begin, count);
    }
  }

 private:
  // Chunk c of [begin, end) begins at chunk_begin_[c].
  void cut(int64_t begin, int64_t end) {
    chunks_ = 0;
    chunk_begin_[0] = begin;
    while (begin < end) {
      begin = cuts_.chunk_end(begin, end);
      chunk_begin_[++chunks_] = begin;
    }
  }

  void load_keys(const Lane<scalar_t>& lane, int64_t begin, int64_t count) {
    subquad::load_keys(
        params_, lane, key_features_, begin, count, key_.get(), value_.get());
  }

  // Features of queries, and the gradients of their numerator and denominator.
  void load_queries(
      const Lane<scalar_t>& lane,
      int64_t head,
      int64_t begin,
      int64_t count) {
    load_query_features(
        params_, lane, query_features_, head, begin, count, query_.get());
    if (gradients_.grad_output == nullptr) {
      std::fill(grad_.get(), grad_.get() + count * value_row_, acc_t(0));
      std::fill(
          grad_denominator_.get(), grad_denominator_.get() + count, acc_t(0));
      return;
    }
    const scalar_t* grad = lane.at_queries(
        static_cast<const scalar_t*>(gradients_.grad_output),
        gradients_.grad_output_stride,
        head);
    const scalar_t* output = lane.at_queries(
        static_cast<const scalar_t*>(params_.output),
        params_.output_stride,
        head);
    const acc_t* denominator = lane.at_query_lines(
        static_cast<const acc_t*>(params_.denominator), params_, head);
    const auto floor = static_cast<acc_t>(params_.floor);
    pack_rows(
        grad + begin * gradients_.grad_output_stride.row,
        gradients_.grad_output_stride.row,
        count,
        values_,
        grad_.get(),
        value_row_);
    for (int64_t i = 0; i < count; ++i) {
      acc_t* row = grad_.get() + i * value_row_;
      grad_denominator_.get()[i] = acc_t(0);
      if (!params_.normalize) {
        continue;
      }
      const acc_t inverse = inverse_denominator(denominator[begin + i], floor);
      // NaN is not held by the floor.
      if (!(denominator[begin + i] < floor)) {
        grad_denominator_.get()[i] = -inverse *
            dot_tokens(row, output + (begin + i) * params_.output_stride.row);
      }
      scale_in_place(row, value_row_, inverse);
    }
  }

  acc_t dot_tokens(const acc_t* a, const scalar_t* b) const {
    Vec<acc_t> sum(acc_t(0));
    int64_t m = 0;
    for (; m + kLanes<acc_t> <= values_; m += kLanes<acc_t>) {
      sum = at::vec::fmadd(Vec<acc_t>::loadu(a + m), load_vector(b + m), sum);
    }
    if (m < values_) {
      sum = at::vec::fmadd(
          Vec<acc_t>::loadu(a + m), load_partial(b + m, values_ - m), sum);
    }
    return reduce_sum(sum);
  }

  // rows[i] *= exp(before[i] - after), into scaled_; the rows themselves where
  // nothing decays.
  template <typename Factor>
  const acc_t* scale_rows(
      const acc_t* rows,
      int64_t count,
      bool decays,
      const Factor& factor) {
    if (!decays) {
      return rows;
    }
    for (int64_t i = 0; i < count; ++i) {
      const Vec<acc_t> scale(factor(i));
      for (int64_t f = 0; f < feature_row_; f += kLanes<acc_t>) {
        (Vec<acc_t>::loadu(rows + i * feature_row_ + f) * scale)
            .store(scaled_.get() + i * feature_row_ + f);
      }
    }
    return scaled_.get();
  }

  // sums[m][f] += sum_i values[i][m] rows[i][f]
  void add_outer(
      const acc_t* values,
      const acc_t* rows,
      int64_t count,
      acc_t* sums) const {
    multiply(
        values_,
        feature_row_ / kLanes<acc_t>,
        count,
        values,
        int64_t{1},
        value_row_,
        rows,
        feature_row_,
        kLanes<acc_t>,
        sums,
        feature_row_,
        true);
  }

  void add_keys(
      const Lane<scalar_t>& lane,
      int64_t begin,
      int64_t count,
      acc_t* sums) {
    const acc_t* keys = key_.get();
    if (lane.log_scale != nullptr) {
      const acc_t* log_scale = lane.log_scale + begin;
      const acc_t last = log_scale[count - 1];
      scale_in_place(sums, size(), decay(lane.log_scale_before(begin), last));
      keys = scale_rows(keys, count, log_scale[0] != last, [&](int64_t i) {
        return decay(log_scale[i], last);
      });
    }
    add_outer(value_.get(), keys, count, sums);
    for (int64_t i = 0; i < count; ++i) {
      add_scaled(
          keys + i * feature_row_, acc_t(1), feature_row_, sums + matrix_);
    }
  }

  // Brings sums over queries after a chunk to the log scale before it.
  void rescale_queries(
      const Lane<scalar_t>& lane,
      int64_t begin,
      int64_t count,
      acc_t* sums) const {
    if (lane.log_scale != nullptr) {
      scale_in_place(
          sums,
          size(),
          decay(
              lane.log_scale_before(begin),
              lane.log_scale_before(begin + count)));
    }
  }

  void add_queries(
      const Lane<scalar_t>& lane,
      int64_t begin,
      int64_t count,
      acc_t* sums) {
    const acc_t* queries = query_.get();
    if (lane.log_scale != nullptr) {
      const acc_t* log_scale = lane.log_scale + begin;
      const acc_t before = lane.log_scale_before(begin);
      queries = scale_rows(
          queries, count, before != log_scale[count - 1], [&](int64_t i) {
            return decay(before, log_scale[i]);
          });
    }
    add_outer(grad_.get(), queries, count, sums);
    for (int64_t i = 0; i < count; ++i) {
      add_scaled(
          queries + i * feature_row_,
          grad_denominator_.get()[i],
          feature_row_,
          sums + matrix_);
    }
  }

  // grad_query = grad S^T + c z
  void multiply_state(const acc_t* sums, int64_t count) {
    multiply(
        count,
        feature_row_ / kLanes<acc_t>,
        values_,
        grad_.get(),
        value_row_,
        int64_t{1},
        sums,
        feature_row_,
        kLanes<acc_t>,
        grad_query_.get(),
        feature_row_,
        false);
    for (int64_t i = 0; i < count; ++i) {
      add_scaled(
          sums + matrix_,
          grad_denominator_.get()[i],
          feature_row_,
          grad_query_.get() + i * feature_row_);
    }
  }

  // grad_key = v R^T + r, grad_value = k R for the first `count` keys.
  void multiply_seen_by_state(int64_t count) {
    multiply(
        count,
        feature_row_ / kLanes<acc_t>,
        values_,
        value_.get(),
        value_row_,
        int64_t{1},
        seen_by_.get(),
        feature_row_,
        kLanes<acc_t>,
        grad_key_.get(),
        feature_row_,
        false);
    for (int64_t j = 0; j < count; ++j) {
      add_scaled(
          seen_by_.get() + matrix_,
          acc_t(1),
          feature_row_,
          grad_key_.get() + j * feature_row_);
    }
    multiply(
        count,
        value_row_ / kLanes<acc_t>,
        features_,
        key_.get(),
        feature_row_,
        int64_t{1},
        seen_by_panels_.get(),
        kLanes<acc_t>,
        features_ * kLanes<acc_t>,
        grad_value_.get(),
        value_row_,
        false);
  }

  // `summed`: keys of the chunk that later queries see. Leaves the chunk's
  // queries in `local`.
  void causal_chunk(
      const Lane<scalar_t>& lane,
      const Sight& sight,
      int64_t summed,
      acc_t* local) {
    const int64_t begin = sight.begin;
    const int64_t count = sight.count;
    load_keys(lane, begin, count);
    pack_panels(key_.get(), feature_row_, count, features_, key_panels_.get());
    pack_panels(value_.get(), value_row_, count, values_, value_panels_.get());
    const bool finite_keys =
        all_finite(key_.get(), feature_row_, count, features_);
    grad_from_later(lane, begin, count, max_index(summed, 0));
    grad_log_scale(lane, begin, count, true);
    rescale_queries(lane, begin, count, local);
    for (int64_t g = 0; g < group_; ++g) {
      const int64_t head = lane.query_head(params_, g);
      load_queries(lane, head, begin, count);
      causal_pairs(lane, sight);
      query_gradients(lane, sight, finite_keys);
      const bool finite_queries =
          all_finite(query_.get(), feature_row_, count, features_) &&
          all_finite(grad_.get(), value_row_, count, values_);
      multiply_seen_by(
          sight,
          grad_pairs_.get(),
          kChunk,
          query_.get(),
          feature_row_,
          feature_row_ / kLanes<acc_t>,
          finite_queries,
          grad_key_.get(),
          feature_row_);
      multiply_seen_by(
          sight,
          pairs_.get(),
          kChunk,
          grad_.get(),
          value_row_,
          value_row_ / kLanes<acc_t>,
          finite_queries,
          grad_value_.get(),
          value_row_);
      add_queries(lane, begin, count, local);
      grad_log_scale(lane, begin, count, false);
      store_queries(lane, head, begin, count);
    }
    add_key_log_scale(lane, begin, count);
    store_keys(lane, begin, count);
  }

  // Key and value gradients from the queries after the chunk.
  void grad_from_later(
      const Lane<scalar_t>& lane,
      int64_t begin,
      int64_t count,
      int64_t summed) {
    multiply_seen_by_state(summed);
    std::fill(
        grad_key_.get() + summed * feature_row_,
        grad_key_.get() + count * feature_row_,
        acc_t(0));
    std::fill(
        grad_value_.get() + summed * value_row_,
        grad_value_.get() + count * value_row_,
        acc_t(0));
    if (lane.log_scale == nullptr) {
      return;
    }
    const acc_t last = lane.log_scale_before(begin + count);
    for (int64_t j = 0; j < summed; ++j) {
      const acc_t factor = decay(lane.log_scale[begin + j], last);
      scale_in_place(grad_key_.get() + j * feature_row_, feature_row_, factor);
      scale_in_place(grad_value_.get() + j * value_row_, value_row_, factor);
    }
  }

  // Pairs of the chunk and their gradients, both decayed.
  void causal_pairs(const Lane<scalar_t>& lane, const Sight& sight) {
    multiply_pairs(
        sight,
        query_.get(),
        feature_row_,
        features_,
        key_panels_.get(),
        pairs_.get(),
        kChunk);
    multiply_pairs(
        sight,
        grad_.get(),
        value_row_,
        values_,
        value_panels_.get(),
        grad_pairs_.get(),
        kChunk);
    for (int64_t i = 0; i < sight.count; ++i) {
      acc_t* row = grad_pairs_.get() + i * kChunk;
      const acc_t added = grad_denominator_.get()[i];
      for (int64_t j = 0; j < sight.end(i); ++j) {
        row[j] += added;
      }
    }
    if (lane.log_scale != nullptr) {
      const acc_t* log_scale = lane.log_scale + sight.begin;
      decay_pairs(sight, log_scale, pairs_.get(), kChunk);
      decay_pairs(sight, log_scale, grad_pairs_.get(), kChunk);
    }
  }

  void
  query_gradients(const Lane<scalar_t>& lane, const Sight& sight, bool finite) {
    multiply_state(seen_, sight.count);
    if (lane.log_scale != nullptr) {
      const acc_t before = lane.log_scale_before(sight.begin);
      for (int64_t i = 0; i < sight.count; ++i) {
        scale_in_place(
            grad_query_.get() + i * feature_row_,
            feature_row_,
            decay(before, lane.log_scale[sight.begin + i]));
      }
    }
    multiply_seen_keys(
        sight,
        grad_pairs_.get(),
        kChunk,
        key_.get(),
        feature_row_,
        feature_row_ / kLanes<acc_t>,
        finite,
        grad_query_.get(),
        feature_row_);
  }

  acc_t* log_scale_gradient(const Lane<scalar_t>& lane, int64_t begin) const {
    if (gradients_.grad_key_log_scale == nullptr) {
      return nullptr;
    }
    return static_cast<acc_t*>(gradients_.grad_key_log_scale) +
        (batch_head(lane))*params_.key_length + lane.keys.start + begin;
  }

  int64_t batch_head(const Lane<scalar_t>& lane) const {
    return lane.batch * params_.key_heads + lane.key_head;
  }

  // Zeros at the `start` of a chunk, then minus the part of each query head.
  void grad_log_scale(
      const Lane<scalar_t>& lane,
      int64_t begin,
      int64_t count,
      bool start) const {
    acc_t* gradient = log_scale_gradient(lane, begin);
    if (gradient == nullptr) {
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      gradient[i] = start ? acc_t(0)
                          : gradient[i] -
              dot(query_.get() + i * feature_row_,
                  grad_query_.get() + i * feature_row_,
                  feature_row_);
    }
  }

  void add_key_log_scale(
      const Lane<scalar_t>& lane,
      int64_t begin,
      int64_t count) const {
    acc_t* gradient = log_scale_gradient(lane, begin);
    if (gradient == nullptr) {
      return;
    }
    for (int64_t j = 0; j < count; ++j) {
      gradient[j] +=
          dot(key_.get() + j * feature_row_,
              grad_key_.get() + j * feature_row_,
              feature_row_);
    }
  }

  void store_queries(
      const Lane<scalar_t>& lane,
      int64_t head,
      int64_t begin,
      int64_t count) {
    if (gradients_.grad_query == nullptr) {
      return;
    }
    const scalar_t* query = lane.at_queries(
        static_cast<const scalar_t*>(params_.query),
        params_.query_stride,
        head);
    scalar_t* gradient = lane.at_queries(
        static_cast<scalar_t*>(gradients_.grad_query),
        gradients_.grad_query_stride,
        head);
    query_features_.backward(
        query + begin * params_.query_stride.row,
        params_.query_stride.row,
        offset_weight(lane.query_weight, begin, params_.query_rule),
        count,
        grad_query_.get(),
        feature_row_,
        gradient + begin * gradients_.grad_query_stride.row,
        gradients_.grad_query_stride.row);
  }

  void store_keys(const Lane<scalar_t>& lane, int64_t begin, int64_t count) {
    const auto at_keys = [&](void* data, const Strides& stride) {
      return static_cast<scalar_t*>(data) + lane.batch * stride.batch +
          lane.key_head * stride.head + (lane.keys.start + begin) * stride.row;
    };
    if (gradients_.grad_key != nullptr) {
      key_features_.backward(
          lane.key + begin * params_.key_stride.row,
          params_.key_stride.row,
          offset_weight(lane.key_weight, begin, params_.key_rule),
          count,
          grad_key_.get(),
          feature_row_,
          at_keys(gradients_.grad_key, gradients_.grad_key_stride),
          gradients_.grad_key_stride.row);
    }
    if (gradients_.grad_value != nullptr) {
      scalar_t* gradient =
          at_keys(gradients_.grad_value, gradients_.grad_value_stride);
      for (int64_t j = 0; j < count; ++j) {
        store_row(
            grad_value_.get() + j * value_row_,
            values_,
            gradient + j * gradients_.grad_value_stride.row);
      }
    }
  }

  const LinearAttentionParams& params_;
  const LinearAttentionGradients& gradients_;
  Cuts cuts_;
  FeatureTile<scalar_t> query_features_;
  FeatureTile<scalar_t> key_features_;
  int64_t group_;               // query heads of a key head
  int64_t features_;            // F
  int64_t values_;              // M
  int64_t feature_row_;         // F to whole vectors
  int64_t value_row_;           // M to whole vectors
  int64_t matrix_;              // elements of the sums' matrix [M, feature_row]
  Scratch<acc_t> query_;        // [kChunk, feature_row]
  Scratch<acc_t> key_;          // [kChunk, feature_row]
  Scratch<acc_t> scaled_;       // [kChunk, feature_row]
  Scratch<acc_t> grad_query_;   // [kChunk, feature_row]
  Scratch<acc_t> grad_key_;     // [kChunk, feature_row]
  Scratch<acc_t> key_panels_;   // [kChunk / lanes][F][lanes]
  Scratch<acc_t> value_;        // [kChunk, value_row]
  Scratch<acc_t> value_panels_; // [kChunk / lanes][M][lanes]
  Scratch<acc_t> grad_value_;   // [kChunk, value_row]
  Scratch<acc_t> grad_;         // [kChunk, value_row], of numerators
  Scratch<acc_t> grad_denominator_; // [kChunk]
  Scratch<acc_t> pairs_;            // [kChunk, kChunk]
  Scratch<acc_t> grad_pairs_;       // [kChunk, kChunk]
  Scratch<acc_t> seen_by_;          // sums over queries after a chunk
  Scratch<acc_t> seen_by_panels_;   // its matrix, [M / lanes][F][lanes]
  std::vector<int64_t> chunk_begin_;
  int64_t chunks_ = 0;
  const acc_t* seen_ = nullptr; // sums over the keys before a chunk
};

template <typename scalar_t>
class Backward {
 public:
  using acc_t = at::opmath_type<scalar_t>;

  Backward(
      const LinearAttentionParams& params,
      const LinearAttentionGradients& gradients)
      : params_(params),
        gradients_(gradients),
        lanes_(params.rows * params.key_heads),
        cuts_(params.causal ? params.blindspot : 1),
        segments_(cuts_.segments(params.key_length)),
        query_segments_(ceil_divide(params.query_length, kSegment)),
        features_(params.features),
        feature_row_(round_to_lanes<acc_t>(params.features)),
        size_((params.value_dim + 1) * feature_row_) {}

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
  // Transposed sums [M, feature_row] and [feature_row] from a state, zeros
  // without one.
  void load(const void* kv, const void* k, int64_t lane, acc_t* sums) const {
    std::fill(sums, sums + size_, acc_t(0));
    const int64_t width = params_.value_dim;
    if (kv != nullptr) {
      const acc_t* matrix =
          static_cast<const acc_t*>(kv) + lane * features_ * width;
      for (int64_t f = 0; f < features_; ++f) {
        for (int64_t m = 0; m < width; ++m) {
          sums[m * feature_row_ + f] = matrix[f * width + m];
        }
      }
    }
    if (k != nullptr) {
      const acc_t* vector = static_cast<const acc_t*>(k) + lane * features_;
      std::copy(vector, vector + features_, sums + width * feature_row_);
    }
  }

  // The gradients of the state that a lane began with are the sums over all of
  // its queries.
  void store_state(int64_t lane, const acc_t* sums) const {
    const int64_t width = params_.value_dim;
    if (gradients_.grad_state_kv != nullptr) {
      acc_t* matrix = static_cast<acc_t*>(gradients_.grad_state_kv) +
          lane * features_ * width;
      for (int64_t f = 0; f < features_; ++f) {
        for (int64_t m = 0; m < width; ++m) {
          matrix[f * width + m] = sums[m * feature_row_ + f];
        }
      }
    }
    if (gradients_.grad_state_k != nullptr) {
      const acc_t* vector = sums + width * feature_row_;
      std::copy(
          vector,
          vector + features_,
          static_cast<acc_t*>(gradients_.grad_state_k) + lane * features_);
    }
  }

  // The log scales that states are in: the last token's gets what the new state
  // loses when it rises, the first state's what its own part gains.
  void store_log_scales(
      const Lane<scalar_t>& lane,
      int64_t index,
      const acc_t* sums) const {
    if (params_.new_state_log_scale == nullptr) {
      return;
    }
    Scratch<acc_t> state(size_);
    Scratch<acc_t> grad(size_);
    load(params_.new_state_kv, params_.new_state_k, index, state.get());
    load(
        gradients_.grad_new_state_kv,
        gradients_.grad_new_state_k,
        index,
        grad.get());
    acc_t last = -dot(state.get(), grad.get(), size_);
    if (gradients_.grad_new_state_log_scale != nullptr) {
      last +=
          static_cast<const acc_t*>(gradients_.grad_new_state_log_scale)[index];
    }
    const int64_t length = lane.keys.length;
    if (length > 0 && gradients_.grad_key_log_scale != nullptr) {
      static_cast<acc_t*>(gradients_.grad_key_log_scale)
          [(lane.batch * params_.key_heads + lane.key_head) *
               params_.key_length +
           lane.keys.start + length - 1] += last;
    }
    if (gradients_.grad_state_log_scale != nullptr) {
      load(params_.state_kv, params_.state_k, index, state.get());
      static_cast<acc_t*>(gradients_.grad_state_log_scale)[index] =
          dot(state.get(), sums, size_) + (length == 0 ? last : acc_t(0));
    }
  }

  int64_t segment_end(const Lane<scalar_t>& lane, int64_t segment) const {
    return min_index((segment + 1) * cuts_.segment(), lane.keys.length);
  }

  // sums = those over everything up to and including the segment, or, of
  // queries, from it on: the part beyond it decays across it.
  void advance(
      const Lane<scalar_t>& lane,
      int64_t segment,
      const acc_t* local,
      acc_t* sums) const {
    combine(
        sums,
        decay(
            lane.log_scale_before(segment * cuts_.segment()),
            lane.log_scale_before(segment_end(lane, segment))),
        local,
        size_,
        sums);
  }

  // Sums before all chunks of a row are kept where they fit, else computed once
  // more for every segment.
  void causal_one_by_one() {
    constexpr int64_t kMostBytes = int64_t{32} << 20;
    const int64_t kept = segments_ * cuts_.chunks() * size_;
    const bool keep = kept * static_cast<int64_t>(sizeof(acc_t)) <= kMostBytes;
    at::parallel_for(
        0,
        lanes_,
        lane_grain(params_, 2 * params_.key_length),
        [&](int64_t begin, int64_t end) {
          Worker<scalar_t> worker(params_, gradients_);
          Scratch<acc_t> before((segments_ + 1) * size_);
          Scratch<acc_t> chunks(keep ? kept : cuts_.chunks() * size_);
          Scratch<acc_t> after(size_);
          Scratch<acc_t> local(size_);
          const auto chunks_of = [&](int64_t segment) {
            return chunks.get() + (keep ? segment * cuts_.chunks() * size_ : 0);
          };
          for (int64_t index = begin; index < end; ++index) {
            const Lane<scalar_t> lane(params_, index);
            const int64_t segments = cuts_.segments(lane.keys.length);
            load(params_.state_kv, params_.state_k, index, before.get());
            for (int64_t s = 0; s < segments; ++s) {
              acc_t* sums = before.get() + (s + 1) * size_;
              worker.sum_before_chunks(
                  lane,
                  s * cuts_.segment(),
                  sums - size_,
                  chunks_of(s),
                  local.get());
              std::copy(sums - size_, sums, sums);
              advance(lane, s, local.get(), sums);
            }
            load(
                gradients_.grad_new_state_kv,
                gradients_.grad_new_state_k,
                index,
                after.get());
            for (int64_t s = segments - 1; s >= 0; --s) {
              if (!keep && s + 1 < segments) {
                worker.sum_before_chunks(
                    lane,
                    s * cuts_.segment(),
                    before.get() + s * size_,
                    chunks_of(s),
                    local.get());
              }
              worker.causal_segment(
                  lane,
                  s * cuts_.segment(),
                  chunks_of(s),
                  after.get(),
                  local.get());
              advance(lane, s, local.get(), after.get());
            }
            store_state(index, after.get());
            store_log_scales(lane, index, after.get());
          }
        });
  }

  void causal_at_once() {
    Scratch<acc_t> before(lanes_ * segments_ * size_);
    Scratch<acc_t> after(lanes_ * segments_ * size_);
    Scratch<acc_t> first(lanes_ * size_);
    at::parallel_for(0, lanes_ * segments_, 1, [&](int64_t begin, int64_t end) {
      Worker<scalar_t> worker(params_, gradients_);
      for (int64_t task = begin; task < end; ++task) {
        const Lane<scalar_t> lane(params_, task / segments_);
        const int64_t s = task % segments_;
        const int64_t from = s * cuts_.segment();
        const int64_t to = segment_end(lane, s);
        if (from < to) {
          worker.sum_keys(lane, from, to, before.get() + task * size_);
          worker.sum_queries(lane, from, to, after.get() + task * size_);
        }
      }
    });
    at::parallel_for(0, lanes_, 1, [&](int64_t begin, int64_t end) {
      Scratch<acc_t> sums(size_);
      Scratch<acc_t> local(size_);
      for (int64_t index = begin; index < end; ++index) {
        const Lane<scalar_t> lane(params_, index);
        const int64_t segments = cuts_.segments(lane.keys.length);
        load(params_.state_kv, params_.state_k, index, sums.get());
        for (int64_t s = 0; s < segments; ++s) {
          exchange(
              before.get() + (index * segments_ + s) * size_,
              sums.get(),
              local.get());
          advance(lane, s, local.get(), sums.get());
        }
        load(
            gradients_.grad_new_state_kv,
            gradients_.grad_new_state_k,
            index,
            sums.get());
        for (int64_t s = segments - 1; s >= 0; --s) {
          exchange(
              after.get() + (index * segments_ + s) * size_,
              sums.get(),
              local.get());
          advance(lane, s, local.get(), sums.get());
        }
        std::copy(sums.get(), sums.get() + size_, first.get() + index * size_);
      }
    });
    at::parallel_for(0, lanes_ * segments_, 1, [&](int64_t begin, int64_t end) {
      Worker<scalar_t> worker(params_, gradients_);
      Scratch<acc_t> chunks(cuts_.chunks() * size_);
      Scratch<acc_t> local(size_);
      for (int64_t task = begin; task < end; ++task) {
        const Lane<scalar_t> lane(params_, task / segments_);
        const int64_t from = task % segments_ * cuts_.segment();
        if (from < lane.keys.length) {
          worker.sum_before_chunks(
              lane,
              from,
              before.get() + task * size_,
              chunks.get(),
              local.get());
          worker.causal_segment(
              lane,
              from,
              chunks.get(),
              after.get() + task * size_,
              local.get());
        }
      }
    });
    for (int64_t index = 0; index < lanes_; ++index) {
      store_state(index, first.get() + index * size_);
      store_log_scales(
          Lane<scalar_t>(params_, index), index, first.get() + index * size_);
    }
  }

  // local = segment, segment = sums
  void exchange(acc_t* segment, const acc_t* sums, acc_t* local) const {
    std::copy(segment, segment + size_, local);
    std::copy(sums, sums + size_, segment);
  }

  void everything() {
    Scratch<acc_t> totals(lanes_ * size_); // over keys, then over queries
    Scratch<acc_t> all(lanes_ * query_segments_ * size_);
    at::parallel_for(
        0,
        lanes_,
        lane_grain(params_, query_segments_),
        [&](int64_t begin, int64_t end) {
          for (int64_t index = begin; index < end; ++index) {
            load(
                params_.new_state_kv,
                params_.new_state_k,
                index,
                totals.get() + index * size_);
          }
        });
    const int64_t group = params_.heads / params_.key_heads;
    at::parallel_for(
        0,
        lanes_ * query_segments_,
        lane_grain(params_, group * min_index(params_.query_length, kSegment)),
        [&](int64_t begin, int64_t end) {
          Worker<scalar_t> worker(params_, gradients_);
          for (int64_t task = begin; task < end; ++task) {
            const int64_t index = task / query_segments_;
            const Lane<scalar_t> lane(params_, index);
            const int64_t from = task % query_segments_ * kSegment;
            worker.queries(
                lane,
                from,
                min_index(from + kSegment, lane.queries.length),
                totals.get() + index * size_,
                all.get() + task * size_);
          }
        });
    at::parallel_for(
        0,
        lanes_,
        lane_grain(params_, query_segments_),
        [&](int64_t begin, int64_t end) {
          for (int64_t index = begin; index < end; ++index) {
            acc_t* sums = totals.get() + index * size_;
            load(
                gradients_.grad_new_state_kv,
                gradients_.grad_new_state_k,
                index,
                sums);
            for (int64_t s = 0; s < query_segments_; ++s) {
              combine(
                  sums,
                  acc_t(1),
                  all.get() + (index * query_segments_ + s) * size_,
                  size_,
                  sums);
            }
            store_state(index, sums);
          }
        });
    at::parallel_for(
        0,
        lanes_ * segments_,
        lane_grain(params_, min_index(params_.key_length, kSegment)),
        [&](int64_t begin, int64_t end) {
          Worker<scalar_t> worker(params_, gradients_);
          for (int64_t task = begin; task < end; ++task) {
            const int64_t index = task / segments_;
            const Lane<scalar_t> lane(params_, index);
            const int64_t from = task % segments_ * cuts_.segment();
            if (from < lane.keys.length) {
              worker.keys(
                  lane,
                  from,
                  segment_end(lane, task % segments_),
                  totals.get() + index * size_);
            }
          }
        });
  }

  const LinearAttentionParams& params_;
  const LinearAttentionGradients& gradients_;
  int64_t lanes_;
  Cuts cuts_;
  int64_t segments_;       // of the longest row's keys
  int64_t query_segments_; // of the longest row's queries, when not causal
  int64_t features_;
  int64_t feature_row_;
  int64_t size_; // elements of transposed sums
};

void backward_kernel(
    const LinearAttentionParams& params,
    const LinearAttentionGradients& gradients,
    c10::ScalarType dtype) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, dtype, "linear_attention_backward", [&] {
        Backward<scalar_t>(params, gradients).run();
      });
}

} // namespace

} // namespace subquad

namespace at::native {

ALSO_REGISTER_AVX512_DISPATCH(
    subquad_linear_attention_backward_stub,
    &subquad::backward_kernel)

} // namespace at::native
