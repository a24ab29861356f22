#include "ops/window_attention/cpu_kernel.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "cpu/dropout.h"
#include "cpu/micro_kernel.h"
#include "cpu/pack.h"
#include "cpu/row_tiles.h"
#include "ops/window_attention/cpu_rows.h"
#include "ops/window_attention/cpu_tile.h"

namespace subquad {

namespace {

// Elements of keys and values that are packed at a time: half of a common L2.
constexpr int64_t kChunkElements = 65536;

// Rows with at most this many queries read keys and values as they lie: packing
// would cost more than it saves.
constexpr int64_t kDirectQueries = 2;

// Multiply-adds that are not worth a second thread.
constexpr int64_t kSerialWork = 200000;

// Keys per chunk of the online softmax. A multiple of the lanes, and large
// enough for what a tile sees unless the window itself is large.
template <typename acc_t>
int64_t chunk_keys(const WindowAttentionParams& params) {
  const int64_t width = params.head_dim + params.value_dim;
  int64_t most = max_index(kChunkElements / max_index(width, 1), 64);
  most = min_index(most, max_index(params.key_length, params.summaries));
  return round_to_lanes<acc_t>(max_index(most, 1));
}

// Without a table of positions, a tile's windows cover few keys.
inline int64_t most_tile_keys(const WindowAttentionParams& params) {
  if (params.query_position != nullptr) {
    return params.key_length;
  }
  const int64_t reach = min_index(
      window_slots(params.window) + params.window.block, params.key_length);
  return min_index(reach + kTileQueries, params.key_length);
}

// One worker's scratch memory and its walk over tiles.
//
// A tile's queries are copied once, scaled. For every chunk of the keys that
// the tile sees, each group of its queries computes the logits of its own range
// of keys by register tiles over packed panels, makes weights of them with the
// online softmax, and adds its product with the packed values. The summaries
// are further chunks of the same softmax. Groups compute on whole panels and
// the union of their queries' windows; weights outside a query's own window are
// exactly zero.
template <typename scalar_t>
class Forward {
 public:
  using acc_t = at::opmath_type<scalar_t>;
  static constexpr int64_t kLane = kLanes<acc_t>;

  explicit Forward(const WindowAttentionParams& params)
      : params_(params),
        queries_(min_index(kTileQueries, params.query_length)),
        head_dim_(round_to_lanes<acc_t>(params.head_dim)),
        value_dim_(round_to_lanes<acc_t>(params.value_dim)),
        chunk_(chunk_keys<acc_t>(params)),
        // An odd number of vectors, so that rows do not share cache sets.
        stride_((chunk_ / kLane | 1) * kLane),
        relative_stride_(stride_ + 4 * kLane),
        query_(queries_ * head_dim_),
        unscaled_(has_relative() ? queries_ * head_dim_ : 0),
        logits_(kTileRows * stride_),
        relative_(has_relative() ? kTileRows * relative_stride_ : 0),
        output_(queries_ * value_dim_),
        before_(kTileRows * value_dim_),
        window_(
            params,
            min_index(chunk_, most_tile_keys(params)),
            params.relative_key != nullptr ? window_slots(params.window) : 0),
        summary_(
            params,
            min_index(chunk_, params.summaries),
            params.summary_relative_key != nullptr ? params.summaries : 0) {}

  void run(const HeadRow& at, const RowTile& queries) {
    if (!at_.has_value() || at_->row != at.row || at_->head != at.head) {
      enter(at);
    }
    plan_tile(params_, at, queries.begin, queries.end - queries.begin, tile_);
    load_queries();
    std::fill_n(top_, tile_.count, -std::numeric_limits<acc_t>::infinity());
    std::fill_n(total_, tile_.count, acc_t(0));
    std::fill_n(started_, tile_.groups, false);
    for_chunks(window_, tile_.keys);
    for_chunks(summary_, {0, tile_.limit});
    finish();
  }

 private:
  // The keys of the window, or the summaries.
  struct Part {
    Part(const WindowAttentionParams& params, int64_t rows, int64_t table_rows)
        : keys(rows, params.head_dim),
          values(rows, params.value_dim),
          table(round_to_lanes<acc_t>(table_rows) * params.head_dim) {}

    const scalar_t* key = nullptr; // [keys, D]
    int64_t key_stride = 0;
    const scalar_t* value = nullptr; // [keys, M]
    int64_t value_stride = 0;
    MovingPack<scalar_t, true> keys;    // [D][lanes] panels
    MovingPack<scalar_t, false> values; // [keys][M]

    // Relative keys; row `origin` + n of a query belongs to its key n.
    const scalar_t* relative = nullptr; // [rows, D]
    int64_t relative_stride = 0;
    int64_t relative_rows = 0;
    bool table_packed = false;
    Scratch<acc_t> table; // [D][lanes] panels
  };

  // What a query sees of a part; j counts the part's keys.
  struct Row {
    Range seen;
    int64_t origin;       // row j - origin of the relative table belongs to j
    int64_t column;       // weight column + j, for dropout
    const scalar_t* bias; // at j = 0, or null
    const scalar_t* key_bias; // at j = 0, or null
  };

  bool has_relative() const {
    return params_.relative_key != nullptr ||
        params_.summary_relative_key != nullptr;
  }

  // Points the parts at the keys of another row or head.
  void enter(const HeadRow& at) {
    at_ = at;
    direct_ = at.queries.length <= kDirectQueries;
    set_keys(
        window_,
        vector_at<scalar_t>(
            params_.key,
            params_.key_stride,
            at.batch,
            at.key_head,
            at.keys.start),
        params_.key_stride.row,
        vector_at<scalar_t>(
            params_.value,
            params_.value_stride,
            at.batch,
            at.key_head,
            at.keys.start),
        params_.value_stride.row,
        at.keys.length);
    const int64_t D = params_.head_dim;
    if (params_.relative_key != nullptr) {
      const auto* table = static_cast<const scalar_t*>(params_.relative_key) +
          at.head * params_.relative_key_head_stride;
      set_relative(window_, table, D, window_slots(params_.window));
    }
    if (params_.summaries == 0) {
      return;
    }
    set_keys(
        summary_,
        vector_at<scalar_t>(
            params_.summary_key,
            params_.summary_key_stride,
            at.row,
            at.key_head,
            0),
        params_.summary_key_stride.row,
        vector_at<scalar_t>(
            params_.summary_value,
            params_.summary_value_stride,
            at.row,
            at.key_head,
            0),
        params_.summary_value_stride.row,
        at.summaries);
    if (params_.summary_relative_key != nullptr) {
      // Read backwards, because summary c takes row limit - 1 - c.
      const auto* table =
          static_cast<const scalar_t*>(params_.summary_relative_key) +
          at.head * params_.summary_relative_key_head_stride;
      set_relative(
          summary_, table + (params_.summaries - 1) * D, -D, params_.summaries);
    }
  }

  void set_keys(
      Part& part,
      const scalar_t* key,
      int64_t key_stride,
      const scalar_t* value,
      int64_t value_stride,
      int64_t rows) {
    part.key = key;
    part.key_stride = key_stride;
    part.value = value;
    part.value_stride = value_stride;
    part.keys.reset(key, key_stride, rows);
    part.values.reset(value, value_stride, rows);
  }

  void set_relative(
      Part& part,
      const scalar_t* table,
      int64_t stride,
      int64_t rows) {
    part.table_packed = part.table_packed && part.relative == table;
    part.relative = table;
    part.relative_stride = stride;
    part.relative_rows = rows;
    if (part.table_packed || direct_) {
      return;
    }
    part.table_packed = true;
    for (int64_t r = 0; r < rows; r += kLane) {
      pack_panel(
          table + r * stride,
          stride,
          min_index(kLane, rows - r),
          params_.head_dim,
          part.table.get() + r * params_.head_dim);
    }
  }

  void load_queries() {
    const scalar_t* query = vector_at<scalar_t>(
        params_.query,
        params_.query_stride,
        at_->batch,
        at_->head,
        tile_.begin);
    pack_rows(
        query,
        params_.query_stride.row,
        tile_.count,
        params_.head_dim,
        query_.get(),
        head_dim_,
        static_cast<acc_t>(params_.scale));
    if (has_relative()) {
      pack_rows(
          query,
          params_.query_stride.row,
          tile_.count,
          params_.head_dim,
          unscaled_.get(),
          head_dim_);
    }
  }

  // The next tile's queries, a group at a time.
  void prefetch_queries(const Group& group) const {
    const int64_t begin = tile_.begin + tile_.count + group.begin;
    const int64_t end = min_index(
        begin + group.count, at_->queries.start + at_->queries.length);
    for (int64_t i = begin; i < end; ++i) {
      prefetch(
          vector_at<scalar_t>(
              params_.query, params_.query_stride, at_->batch, at_->head, i),
          params_.head_dim * static_cast<int64_t>(sizeof(scalar_t)));
    }
  }

  bool is_window(const Part& part) const {
    return &part == &window_;
  }

  Range keys_of(const Part& part, const Group& group) const {
    return is_window(part) ? group.keys : Range{0, group.limit};
  }

  Row row_of(const Part& part, int64_t i) const {
    const Sight& sight = tile_.sight[i];
    if (!is_window(part)) {
      return {
          {0, sight.limit},
          sight.limit - params_.summaries,
          params_.key_length,
          nullptr,
          nullptr};
    }
    Row row{sight.keys, sight.origin, at_->keys.start, nullptr, nullptr};
    if (params_.bias != nullptr) {
      row.bias = static_cast<const scalar_t*>(params_.bias) +
          at_->head * params_.bias_head_stride +
          sight.line * window_slots(params_.window) - sight.origin;
    }
    if (params_.key_bias != nullptr) {
      row.key_bias = static_cast<const scalar_t*>(params_.key_bias) +
          at_->batch * params_.key_length + at_->keys.start;
    }
    return row;
  }

  void for_chunks(Part& part, const Range& keys) {
    for (int64_t begin = keys.begin / kLane * kLane; begin < keys.end;
         begin += chunk_) {
      const Range chunk{begin, min_index(begin + chunk_, keys.end)};
      Range used{0, 0};
      for (int64_t g = 0; g < tile_.groups; ++g) {
        used = unite(used, intersect(keys_of(part, tile_.group[g]), chunk));
      }
      if (used.empty()) {
        continue;
      }
      for (int64_t g = 0; g < tile_.groups; ++g) {
        const Range range = intersect(keys_of(part, tile_.group[g]), chunk);
        if (range.empty()) {
          continue;
        }
        // Packed when first needed, so that reading spreads over the work.
        if (!direct_) {
          part.keys.cover(used.begin, range.end);
        }
        if (!values_in_place()) {
          part.values.cover(used.begin, range.end);
        }
        attend(part, g, range);
      }
    }
  }

  bool values_in_place() const {
    return std::is_same_v<scalar_t, acc_t> && direct_ &&
        params_.value_dim % kLane == 0;
  }

  // Adds the keys `range` of a part to the softmax of a group.
  void attend(const Part& part, int64_t g, const Range& range) {
    const Group& group = tile_.group[g];
    const int64_t first = range.begin / kLane * kLane;
    const int64_t vectors = ceil_divide(range.end - first, kLane);
    const bool accumulate = started_[g];
    if (!accumulate) {
      prefetch_queries(group);
    }
    started_[g] = true;
    if (direct_) {
      for (int64_t r = 0; r < group.count; ++r) {
        dot_rows(
            query_.get() + (group.begin + r) * head_dim_,
            part.key + range.begin * part.key_stride,
            part.key_stride,
            size_of(range),
            logits_.get() + r * stride_ + range.begin - first);
      }
    } else {
      multiply(
          group.count,
          vectors,
          params_.head_dim,
          query_.get() + group.begin * head_dim_,
          head_dim_,
          1,
          part.keys.unit(first / kLane),
          kLane,
          part.keys.unit_size(),
          logits_.get(),
          stride_,
          false);
    }
    if (part.relative != nullptr) {
      add_relative(part, group, range, first);
    }
    for (int64_t r = 0; r < group.count; ++r) {
      const int64_t i = group.begin + r;
      const Row row = row_of(part, i);
      const Range seen = intersect(row.seen, range);
      acc_t* logits = logits_.get() + r * stride_; // of key `first` and on
      if (row.bias != nullptr) {
        add_row(
            row.bias + seen.begin, size_of(seen), logits + seen.begin - first);
      }
      if (row.key_bias != nullptr) {
        add_row(
            row.key_bias + seen.begin,
            size_of(seen),
            logits + seen.begin - first);
      }
      const acc_t factor = weigh(
          logits,
          vectors,
          {seen.begin - first, seen.end - first},
          top_[i],
          total_[i]);
      if (accumulate && factor != 1) {
        acc_t* output = output_.get() + i * value_dim_;
        store_row(output, value_dim_, output, factor);
      }
      if (params_.dropout_state != nullptr) {
        drop(logits, first, seen, row.column, tile_.begin + i);
      }
    }
    add_values(part, group, range, first, accumulate);
  }

  // Adds q . relative_key. The rows of the table that a query needs move with
  // its origin, so that the product is taken with the union of them, and added
  // askew.
  void add_relative(
      const Part& part,
      const Group& group,
      const Range& range,
      int64_t first) {
    Range slots[kTileRows];
    Range all{0, 0};
    for (int64_t r = 0; r < group.count; ++r) {
      const Row row = row_of(part, group.begin + r);
      const Range seen = intersect(row.seen, range);
      slots[r] = {seen.begin - row.origin, seen.end - row.origin};
      all = unite(all, slots[r]);
    }
    // Positions that are far apart share nothing: one row at a time then.
    const bool together =
        !direct_ && size_of(all) + 2 * kLane <= relative_stride_;
    for (int64_t r = 0; r < group.count; ++r) {
      if (slots[r].empty() && !together) {
        continue;
      }
      const Range& needed = together ? all : slots[r];
      const int64_t begin = needed.begin / kLane * kLane;
      if (direct_) {
        dot_rows(
            unscaled_.get() + (group.begin + r) * head_dim_,
            part.relative + needed.begin * part.relative_stride,
            part.relative_stride,
            size_of(needed),
            relative_.get() + r * relative_stride_ + needed.begin - begin);
      } else if (r == 0 || !together) {
        multiply(
            together ? group.count : 1,
            ceil_divide(needed.end - begin, kLane),
            params_.head_dim,
            unscaled_.get() + (group.begin + r) * head_dim_,
            head_dim_,
            1,
            part.table.get() + begin * params_.head_dim,
            kLane,
            kLane * params_.head_dim,
            relative_.get() + r * relative_stride_,
            relative_stride_,
            false);
      }
      const Row row = row_of(part, group.begin + r);
      add_row(
          relative_.get() + r * relative_stride_ + slots[r].begin - begin,
          size_of(slots[r]),
          logits_.get() + r * stride_ + slots[r].begin + row.origin - first);
    }
  }

  // products[n] = query . rows[n] for `count` rows, read as they lie.
  void dot_rows(
      const acc_t* query,
      const scalar_t* rows,
      int64_t stride,
      int64_t count,
      acc_t* products) {
    constexpr int64_t kSome = 4;
    int64_t n = 0;
    for (; n + kSome <= count; n += kSome) {
      dot_some<kSome>(query, rows + n * stride, stride, products + n);
    }
    for (; n < count; ++n) {
      dot_some<1>(query, rows + n * stride, stride, products + n);
    }
  }

  template <int N>
  void dot_some(
      const acc_t* query,
      const scalar_t* rows,
      int64_t stride,
      acc_t* products) {
    Vec<acc_t> sum[N];
    SUBQUAD_UNROLL
    for (int n = 0; n < N; ++n) {
      sum[n] = Vec<acc_t>(acc_t(0));
    }
    int64_t d = 0;
    for (; d + kLane <= params_.head_dim; d += kLane) {
      const auto some = Vec<acc_t>::loadu(query + d);
      SUBQUAD_UNROLL
      for (int n = 0; n < N; ++n) {
        sum[n] =
            at::vec::fmadd(some, load_vector(rows + n * stride + d), sum[n]);
      }
    }
    if (d < params_.head_dim) {
      const auto some = Vec<acc_t>::loadu(query + d);
      SUBQUAD_UNROLL
      for (int n = 0; n < N; ++n) {
        sum[n] = at::vec::fmadd(
            some,
            load_partial(rows + n * stride + d, params_.head_dim - d),
            sum[n]);
      }
    }
    SUBQUAD_UNROLL
    for (int n = 0; n < N; ++n) {
      products[n] = reduce_sum(sum[n]);
    }
  }

  // Makes weights of the logits of one query, exact zeros outside `seen`, and
  // moves its running maximum and sum. Returns the factor that what was summed
  // before this chunk needs now.
  acc_t weigh(
      acc_t* logits,
      int64_t vectors,
      const Range& seen,
      acc_t& top,
      acc_t& total) {
    using V = Vec<acc_t>;
    const V zero(acc_t(0));
    if (seen.empty()) {
      for (int64_t v = 0; v < vectors; ++v) {
        zero.store(logits + v * kLane);
      }
      return acc_t(1);
    }
    const int64_t begin = seen.begin / kLane; // vectors
    const int64_t end = ceil_divide(seen.end, kLane);
    const V low(-std::numeric_limits<acc_t>::infinity());
    const auto mask = [&](int64_t v) {
      const V lane = V::arange(static_cast<acc_t>(v * kLane), 1);
      const V visible = (lane >= V(static_cast<acc_t>(seen.begin))) &
          (lane < V(static_cast<acc_t>(seen.end)));
      const V x = V::loadu(logits + v * kLane);
      V::blendv(low, x, visible).store(logits + v * kLane);
    };
    mask(begin);
    mask(end - 1);
    V most = low;
    for (int64_t v = begin; v < end; ++v) {
      most = at::vec::clamp_min(most, V::loadu(logits + v * kLane));
    }
    const acc_t before = top;
    top = std::max(before, reduce_max(most));
    // A row of -inf only keeps weights of zero.
    const V base(
        top == -std::numeric_limits<acc_t>::infinity() ? acc_t(0) : top);
    V sum = zero;
    for (int64_t v = 0; v < begin; ++v) {
      zero.store(logits + v * kLane);
    }
    for (int64_t v = begin; v < end; ++v) {
      const V weight = exponential(V::loadu(logits + v * kLane) - base);
      sum = sum + weight;
      weight.store(logits + v * kLane);
    }
    for (int64_t v = end; v < vectors; ++v) {
      zero.store(logits + v * kLane);
    }
    const acc_t factor = top == before ? acc_t(1) : std::exp(before - top);
    total = total * factor + reduce_sum(sum);
    return factor;
  }

  void drop(
      acc_t* weights,
      int64_t first,
      const Range& seen,
      int64_t column,
      int64_t index) {
    const Dropout dropout{
        params_.dropout,
        static_cast<uint64_t>(params_.dropout_state[0]),
        static_cast<uint64_t>(params_.dropout_state[1])};
    drop_weights(
        dropout,
        weight_index(
            params_, at_->batch, at_->head, index, column + seen.begin),
        size_of(seen),
        static_cast<acc_t>(1.0 / (1.0 - params_.dropout)),
        weights + seen.begin - first);
  }

  // output += weights . values. A NaN or infinity in a value spoils the queries
  // that do not see it, by 0 * NaN; that shows in the result, which is then
  // computed again with each query's own range. Both ways add the same terms in
  // the same order.
  void add_values(
      const Part& part,
      const Group& group,
      const Range& range,
      int64_t first,
      bool accumulate) {
    acc_t* output = output_.get() + group.begin * value_dim_;
    const int64_t size = group.count * value_dim_;
    if (accumulate) {
      std::copy_n(output, size, before_.get());
    }
    const acc_t* values = nullptr; // of key 0
    int64_t value_stride = 0;
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      values = part.value;
      value_stride = part.value_stride;
    }
    if (!values_in_place()) {
      values = part.values.row(0);
      value_stride = part.values.stride();
    }
    const auto product = [&](int64_t r, int64_t rows, const Range& keys) {
      multiply(
          rows,
          value_dim_ / kLane,
          size_of(keys),
          logits_.get() + r * stride_ + keys.begin - first,
          stride_,
          1,
          values + keys.begin * value_stride,
          value_stride,
          kLane,
          output + r * value_dim_,
          value_dim_,
          accumulate);
    };
    product(0, group.count, range);
    if (all_finite(output, value_dim_, group.count, value_dim_)) {
      return;
    }
    if (accumulate) {
      std::copy_n(before_.get(), size, output);
    }
    for (int64_t r = 0; r < group.count; ++r) {
      product(r, 1, intersect(row_of(part, group.begin + r).seen, range));
    }
  }

  void finish() {
    scalar_t* output = static_cast<scalar_t*>(params_.output) +
        at_->batch * params_.output_stride.batch +
        at_->head * params_.output_stride.head +
        tile_.begin * params_.output_stride.row;
    for (int64_t g = 0; g < tile_.groups; ++g) {
      const Group& group = tile_.group[g];
      for (int64_t i = group.begin; i < group.begin + group.count; ++i) {
        if (!started_[g]) {
          std::fill_n(output_.get() + i * value_dim_, value_dim_, acc_t(0));
        }
        store_row(
            output_.get() + i * value_dim_,
            params_.value_dim,
            output + i * params_.output_stride.row,
            total_[i] == 0 ? acc_t(0) : 1 / total_[i]);
      }
    }
    acc_t* logsumexp = static_cast<acc_t*>(params_.logsumexp) +
        (at_->batch * params_.heads + at_->head) * params_.query_length +
        tile_.begin;
    // Without weights this is -inf + log(0).
    for (int64_t i = 0; i < tile_.count; i += kLane) {
      const Vec<acc_t> lse =
          Vec<acc_t>::loadu(top_ + i) + Vec<acc_t>::loadu(total_ + i).log();
      lse.store(logsumexp + i, min_index(kLane, tile_.count - i));
    }
  }

  const WindowAttentionParams& params_;
  const int64_t queries_;  // of the largest tile
  const int64_t head_dim_; // padded to whole vectors, like value_dim_
  const int64_t value_dim_;
  const int64_t chunk_;  // keys
  const int64_t stride_; // of logits_
  const int64_t relative_stride_;

  std::optional<HeadRow> at_;
  bool direct_ = false; // keys are read as they lie
  Tile tile_;
  acc_t top_[kTileQueries];
  acc_t total_[kTileQueries];
  bool started_[kTileQueries]; // by group: its output holds a sum

  Scratch<acc_t> query_; // [queries_, head_dim_], scaled
  Scratch<acc_t> unscaled_;
  Scratch<acc_t> logits_;   // [kTileRows, stride_], then weights
  Scratch<acc_t> relative_; // [kTileRows, relative_stride_]
  Scratch<acc_t> output_;   // [queries_, value_dim_]
  Scratch<acc_t> before_;   // [kTileRows, value_dim_]
  Part window_;
  Part summary_;
};

template <typename scalar_t>
void forward(const WindowAttentionParams& params) {
  const RowTiles tiles(
      params.query_spans, params.rows, params.query_length, kTileQueries);
  const int64_t tile_work = // multiply-adds
      min_index(kTileQueries, params.query_length) *
      (min_index(window_slots(params.window), params.key_length) +
       params.summaries) *
      (params.head_dim + params.value_dim);
  at::parallel_for(
      0,
      params.heads * tiles.size(),
      ceil_divide(kSerialWork, max_index(tile_work, 1)),
      [&](int64_t begin, int64_t end) {
        Forward<scalar_t> worker(params);
        for (int64_t task = begin; task < end; ++task) {
          const RowTile tile = tiles[task % tiles.size()];
          worker.run(head_row(params, tile.row, task / tiles.size()), tile);
        }
      });
}

void forward_kernel(
    const WindowAttentionParams& params,
    c10::ScalarType dtype) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, dtype, "window_attention", [&] {
        forward<scalar_t>(params);
      });
}

} // namespace

} // namespace subquad

namespace at::native {

ALSO_REGISTER_AVX512_DISPATCH(
    subquad_window_attention_forward_stub,
    &subquad::forward_kernel)

} // namespace at::native
