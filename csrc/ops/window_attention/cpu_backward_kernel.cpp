#include "ops/window_attention/cpu_kernel.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <memory>
#include <vector>

#include "common/window_segments.h"
#include "ops/window_attention/cpu_backward_tile.h"
#include "ops/window_attention/cpu_key_gradients.h"

// A task is a segment of one row's queries (several short ones where tables
// have gradients) and one key head. It walks the segment's tiles in order,
// every query head on each, and adds up the gradients of keys, summaries and
// tables in buffers of its own; a second pass adds up what tasks share.
namespace subquad {

namespace {

constexpr int64_t kLeastSegment = 512; // queries

// Sums of the gradient of a table that tasks share: `lines` lines of `width`
// elements, `pitch` apart, for every head that has its own.
template <typename acc_t>
class TableSums {
 public:
  TableSums(
      const WindowAttentionParams& params,
      void* gradient, // null when not wanted
      int64_t tasks,
      int64_t head_stride,
      int64_t lines,
      int64_t width,
      int64_t pitch)
      : gradient_(gradient),
        tasks_(tasks),
        table_heads_(head_stride != 0 ? params.heads : 1),
        sum_heads_(head_stride != 0 ? params.heads : params.key_heads),
        lines_(lines),
        width_(width),
        pitch_(pitch),
        sums_(gradient != nullptr ? tasks * sum_heads_ * lines * pitch : 0) {}

  // The sums that a task keeps for a query head.
  acc_t* part(int64_t task, const HeadRow& at) const {
    if (gradient_ == nullptr) {
      return nullptr;
    }
    return part(task, table_heads_ > 1 ? at.head : at.key_head);
  }

  // Zeroes what a task will add to.
  void clear(int64_t task, int64_t key_head, int64_t group) const {
    if (gradient_ != nullptr) {
      const int64_t parts = table_heads_ > 1 ? group : 1;
      std::fill_n(
          part(task, key_head * parts), parts * lines_ * pitch_, acc_t(0));
    }
  }

  // Adds up the tasks' parts. The table has `table_lines` lines; the rest of
  // them are read by no query.
  template <typename scalar_t>
  void reduce(int64_t table_lines) const {
    if (gradient_ == nullptr) {
      return;
    }
    const int64_t summed = sum_heads_ / table_heads_;
    at::parallel_for(
        0, table_heads_ * table_lines, 8, [&](int64_t begin, int64_t end) {
          const Scratch<acc_t> sum(round_to_lanes<acc_t>(width_));
          for (int64_t index = begin; index < end; ++index) {
            const int64_t head = index / table_lines;
            const int64_t line = index % table_lines;
            std::fill_n(sum.get(), width_, acc_t(0));
            for (int64_t task = 0; task < tasks_ && line < lines_; ++task) {
              for (int64_t n = head * summed; n < (head + 1) * summed; ++n) {
                add_row(part(task, n) + line * pitch_, width_, sum.get());
              }
            }
            store_row(
                sum.get(),
                width_,
                static_cast<scalar_t*>(gradient_) + index * width_);
          }
        });
  }

 private:
  acc_t* part(int64_t task, int64_t head) const {
    return sums_.get() + (task * sum_heads_ + head) * lines_ * pitch_;
  }

  void* gradient_;
  int64_t tasks_;
  int64_t table_heads_; // of the table
  int64_t sum_heads_;   // of a task's sums
  int64_t lines_;
  int64_t width_;
  int64_t pitch_;
  Scratch<acc_t> sums_;
};

// A relative table of one head in the forms that the tiles read.
template <typename scalar_t>
class RelativePack {
 public:
  using acc_t = at::opmath_type<scalar_t>;

  RelativePack(const scalar_t* table, int64_t lines, int64_t width)
      : panels_(round_to_lanes<acc_t>(lines) * width),
        rows_(lines * round_to_lanes<acc_t>(width)) {
    constexpr int64_t unit = kLanes<acc_t>;
    for (int64_t line = 0; line < lines; line += unit) {
      pack_panel(
          table + line * width,
          width,
          min_index(lines - line, unit),
          width,
          panels_.get() + line * width);
    }
    const int64_t pitch = round_to_lanes<acc_t>(width);
    pack_rows(table, width, lines, width, rows_.get(), pitch);
    finite_ = all_finite(rows_.get(), pitch, lines, pitch);
  }

  RelativeTable<acc_t> table(acc_t* gradient) const {
    return {panels_.get(), rows_.get(), gradient, finite_};
  }

 private:
  Scratch<acc_t> panels_;
  Scratch<acc_t> rows_;
  bool finite_;
};

template <typename scalar_t>
class Backward {
 public:
  using acc_t = at::opmath_type<scalar_t>;

  Backward(
      const WindowAttentionParams& params,
      const WindowAttentionGradients& gradients);

  void run();

 private:
  // One run of segments; every one belongs to exactly one task.
  struct Task {
    size_t begin;
    size_t end;
  };

  class Worker;

  static int64_t segment_length(const WindowAttentionParams& params);
  std::vector<Task> plan_tasks() const;
  void merge_keys() const;
  void merge_summaries() const;
  void merge_key_bias() const;

  // The part of the gradients of a row's summaries that a segment gives.
  acc_t* summary_key(size_t segment, int64_t key_head) const {
    return summary_sums_.get() +
        (static_cast<int64_t>(segment) * params_.key_heads + key_head) *
        summary_rows_ * (key_width_ + value_width_);
  }
  acc_t* summary_value(size_t segment, int64_t key_head) const {
    return summary_key(segment, key_head) + summary_rows_ * key_width_;
  }

  const WindowAttentionParams& params_;
  const WindowAttentionGradients& gradients_;
  const int64_t group_; // query heads per key head
  const int64_t key_width_;
  const int64_t value_width_;
  const int64_t summary_rows_; // C, rounded: tiles add zeros to the last rows
  const bool keys_wanted_;
  const bool summaries_wanted_;
  const std::vector<WindowSegment> segments_;
  const std::vector<Task> tasks_;
  const int64_t shared_keys_;         // of one key head
  const Scratch<acc_t> shared_key_;   // [Hkv, shared keys, D]
  const Scratch<acc_t> shared_value_; // [Hkv, shared keys, M]
  const Scratch<acc_t> shared_bias_;  // [Hkv, shared keys]
  const SharedKeys<acc_t> shared_;
  const Scratch<acc_t> summary_sums_; // [segments, Hkv, rows, D | M]
  const Scratch<acc_t> key_bias_;     // [Hkv, B, S]
  const KeyGradientWriter<scalar_t> writer_;
  const TableSums<acc_t> bias_;
  const TableSums<acc_t> relative_;
  const TableSums<acc_t> summary_relative_;
};

// What one thread works with.
template <typename scalar_t>
class Backward<scalar_t>::Worker {
 public:
  explicit Worker(const Backward& all)
      : all_(all),
        params_(all.params_),
        keys_(most(all, false), params_.head_dim, params_.value_dim),
        summaries_(params_.summaries, params_.head_dim, params_.value_dim),
        key_gradients_(
            all.writer_,
            all.shared_,
            all.keys_wanted_ ? most(all, true) : 0),
        tile_(params_, all.gradients_) {}

  void run(int64_t task, int64_t key_head) {
    if (key_head != key_head_) {
      key_head_ = key_head;
      pack_tables();
    }
    all_.bias_.clear(task, key_head, all_.group_);
    all_.relative_.clear(task, key_head, all_.group_);
    all_.summary_relative_.clear(task, key_head, all_.group_);
    const Task& part = all_.tasks_[static_cast<size_t>(task)];
    for (size_t segment = part.begin; segment < part.end; ++segment) {
      run_segment(task, segment);
    }
  }

 private:
  // The most keys of a tile, or that gradients are added up for at once.
  static int64_t most(const Backward& all, bool gradients) {
    int64_t keys = 0;
    for (const WindowSegment& segment : all.segments_) {
      keys = max_index(
          keys,
          gradients && !segment.ordered ? segment.part_size() : segment.span);
    }
    return keys;
  }

  void pack_tables() {
    relative_.clear();
    summary_relative_.clear();
    const auto pack = [&](const void* data,
                          int64_t head_stride,
                          int64_t lines,
                          std::vector<RelativePack<scalar_t>>& packs) {
      if (data == nullptr) {
        return;
      }
      const int64_t heads = head_stride != 0 ? all_.group_ : 1;
      for (int64_t head = 0; head < heads; ++head) {
        packs.emplace_back(
            static_cast<const scalar_t*>(data) +
                (key_head_ * all_.group_ + head) * head_stride,
            lines,
            params_.head_dim);
      }
    };
    pack(
        params_.relative_key,
        params_.relative_key_head_stride,
        window_slots(params_.window),
        relative_);
    pack(
        params_.summary_relative_key,
        params_.summary_relative_key_head_stride,
        params_.summaries,
        summary_relative_);
  }

  void run_segment(int64_t task, size_t index) {
    const WindowSegment& segment = all_.segments_[index];
    HeadRow at = head_row(params_, segment.row, key_head_ * all_.group_);
    keys_.reset(
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
    if (params_.summaries > 0) {
      summaries_.reset(
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
    }
    if (all_.summaries_wanted_) {
      acc_t* sums = all_.summary_key(index, at.key_head);
      std::fill(sums, all_.summary_key(index, at.key_head + 1), acc_t(0));
    }
    if (all_.keys_wanted_) {
      all_.writer_.clear(at.batch, at.key_head, segment.unseen_before);
      all_.writer_.clear(at.batch, at.key_head, segment.unseen_after);
      key_gradients_.begin(segment, at);
    }
    for (int64_t begin = segment.queries.begin; begin < segment.queries.end;
         begin += kBackwardQueries) {
      Tile& tile = tile_.plan();
      plan_tile(
          params_,
          at,
          at.queries.start + begin,
          min_index(kBackwardQueries, segment.queries.end - begin),
          tile);
      if (!tile.keys.empty()) {
        keys_.cover(tile.keys);
        if (all_.keys_wanted_) {
          key_gradients_.cover(tile.keys);
        }
      }
      if (tile.limit > 0) {
        summaries_.cover({0, tile.limit});
      }
      for (int64_t head = 0; head < all_.group_; ++head) {
        at.head = key_head_ * all_.group_ + head;
        run_tile(task, index, at, tile);
      }
    }
    if (all_.keys_wanted_) {
      key_gradients_.finish();
    }
  }

  void
  run_tile(int64_t task, size_t segment, const HeadRow& at, const Tile& tile) {
    constexpr int64_t unit = kLanes<acc_t>;
    const WindowAttentionGradients& gradients = all_.gradients_;
    tile_.load(at);
    const Terms<scalar_t> terms = key_terms(task, at);
    for (int64_t begin = tile.keys.begin / unit * unit; begin < tile.keys.end;
         begin += kBackwardKeys) {
      tile_.run(
          keys_,
          {begin, min_index(begin + kBackwardKeys, tile.keys.end)},
          false,
          terms,
          gradients.grad_key != nullptr ? key_gradients_.key(begin) : nullptr,
          gradients.grad_value != nullptr ? key_gradients_.value(begin)
                                          : nullptr);
    }
    const Terms<scalar_t> summary_terms = this->summary_terms(task, at);
    for (int64_t begin = 0; begin < tile.limit; begin += kBackwardKeys) {
      tile_.run(
          summaries_,
          {begin, min_index(begin + kBackwardKeys, tile.limit)},
          true,
          summary_terms,
          gradients.grad_summary_key != nullptr
              ? all_.summary_key(segment, at.key_head) + begin * all_.key_width_
              : nullptr,
          gradients.grad_summary_value != nullptr
              ? all_.summary_value(segment, at.key_head) +
                  begin * all_.value_width_
              : nullptr);
    }
    if (gradients.grad_query != nullptr) {
      tile_.store_grad_query(at);
    }
  }

  Terms<scalar_t> key_terms(int64_t task, const HeadRow& at) const {
    Terms<scalar_t> terms;
    if (params_.bias != nullptr) {
      terms.bias = static_cast<const scalar_t*>(params_.bias) +
          at.head * params_.bias_head_stride;
      terms.grad_bias = all_.bias_.part(task, at);
    }
    if (params_.key_bias != nullptr) {
      terms.key_bias = static_cast<const scalar_t*>(params_.key_bias) +
          at.batch * params_.key_length + at.keys.start;
    }
    if (all_.gradients_.grad_key_bias != nullptr) {
      terms.grad_key_bias = key_gradients_.bias(0);
    }
    if (!relative_.empty()) {
      terms.relative =
          pack_of(relative_, at).table(all_.relative_.part(task, at));
    }
    return terms;
  }

  Terms<scalar_t> summary_terms(int64_t task, const HeadRow& at) const {
    Terms<scalar_t> terms;
    if (!summary_relative_.empty()) {
      terms.relative = pack_of(summary_relative_, at)
                           .table(all_.summary_relative_.part(task, at));
    }
    return terms;
  }

  const RelativePack<scalar_t>& pack_of(
      const std::vector<RelativePack<scalar_t>>& packs,
      const HeadRow& at) const {
    return packs[static_cast<size_t>(at.head % all_.group_) % packs.size()];
  }

  const Backward& all_;
  const WindowAttentionParams& params_;
  Columns<scalar_t> keys_;
  Columns<scalar_t> summaries_;
  KeyGradients<scalar_t> key_gradients_;
  BackwardTile<scalar_t> tile_;
  int64_t key_head_ = -1;
  std::vector<RelativePack<scalar_t>>
      relative_; // per head of the group, or one
  std::vector<RelativePack<scalar_t>> summary_relative_;
};

// Long enough that the workspaces of segments (overlaps of windows, summaries,
// tables) stay below the size of the inputs.
template <typename scalar_t>
int64_t Backward<scalar_t>::segment_length(
    const WindowAttentionParams& params) {
  const int64_t slots = window_slots(params.window);
  int64_t length = max_index(kLeastSegment, params.summaries);
  length = max_index(length, 2 * (params.window.left + params.window.right));
  if (params.bias != nullptr) {
    length = max_index(
        length,
        params.window.block * slots / (params.head_dim + params.value_dim));
  }
  if (params.relative_key != nullptr) {
    length = max_index(length, slots);
  }
  return ceil_divide(length, kBackwardQueries) * kBackwardQueries;
}

template <typename scalar_t>
auto Backward<scalar_t>::plan_tasks() const -> std::vector<Task> {
  const bool merge = gradients_.grad_bias != nullptr ||
      gradients_.grad_relative_key != nullptr ||
      gradients_.grad_summary_relative_key != nullptr;
  const int64_t enough = merge ? segment_length(params_) : 0;
  std::vector<Task> tasks;
  int64_t queries = 0;
  for (size_t index = 0; index < segments_.size(); ++index) {
    if (tasks.empty() || queries >= enough) {
      tasks.push_back({index, index});
      queries = 0;
    }
    tasks.back().end = index + 1;
    queries += size_of(segments_[index].queries);
  }
  return tasks;
}

inline int64_t count_shared(const std::vector<WindowSegment>& segments) {
  return segments.empty()
      ? 0
      : segments.back().shared_begin + segments.back().shared_keys;
}

template <typename scalar_t>
Backward<scalar_t>::Backward(
    const WindowAttentionParams& params,
    const WindowAttentionGradients& gradients)
    : params_(params),
      gradients_(gradients),
      group_(params.heads / params.key_heads),
      key_width_(round_to_lanes<acc_t>(params.head_dim)),
      value_width_(round_to_lanes<acc_t>(params.value_dim)),
      summary_rows_(round_to_lanes<acc_t>(params.summaries)),
      keys_wanted_(
          gradients.grad_key != nullptr || gradients.grad_value != nullptr ||
          gradients.grad_key_bias != nullptr),
      summaries_wanted_(
          gradients.grad_summary_key != nullptr ||
          gradients.grad_summary_value != nullptr),
      segments_(plan_window_segments(
          params,
          kBackwardQueries,
          segment_length(params))),
      tasks_(plan_tasks()),
      shared_keys_(keys_wanted_ ? count_shared(segments_) : 0),
      shared_key_(params.key_heads * shared_keys_ * key_width_),
      shared_value_(params.key_heads * shared_keys_ * value_width_),
      shared_bias_(params.key_heads * shared_keys_),
      shared_{
          shared_keys_,
          shared_key_.get(),
          shared_value_.get(),
          shared_bias_.get()},
      summary_sums_(
          summaries_wanted_ ? static_cast<int64_t>(segments_.size()) *
                  params.key_heads * summary_rows_ * (key_width_ + value_width_)
                            : 0),
      key_bias_(
          gradients.grad_key_bias != nullptr
              ? params.key_heads * params.batch * params.key_length
              : 0),
      writer_{
          params,
          gradients,
          gradients.grad_key_bias != nullptr ? key_bias_.get() : nullptr},
      bias_(
          params,
          gradients.grad_bias,
          static_cast<int64_t>(tasks_.size()),
          params.bias_head_stride,
          params.window.block,
          window_slots(params.window),
          window_slots(params.window)),
      relative_(
          params,
          gradients.grad_relative_key,
          static_cast<int64_t>(tasks_.size()),
          params.relative_key_head_stride,
          window_slots(params.window),
          params.head_dim,
          key_width_),
      summary_relative_(
          params,
          gradients.grad_summary_relative_key,
          static_cast<int64_t>(tasks_.size()),
          params.summary_relative_key_head_stride,
          params.summaries,
          params.head_dim,
          key_width_) {}

template <typename scalar_t>
void Backward<scalar_t>::run() {
  const int64_t tasks = static_cast<int64_t>(tasks_.size());
  at::parallel_for(
      0, tasks * params_.key_heads, 1, [&](int64_t begin, int64_t end) {
        Worker worker(*this);
        for (int64_t index = begin; index < end; ++index) {
          worker.run(index % tasks, index / tasks);
        }
      });
  if (keys_wanted_) {
    merge_keys();
  }
  if (summaries_wanted_) {
    merge_summaries();
  }
  if (gradients_.grad_key_bias != nullptr) {
    merge_key_bias();
  }
  bias_.template reduce<scalar_t>(params_.window.block);
  relative_.template reduce<scalar_t>(window_slots(params_.window));
  summary_relative_.template reduce<scalar_t>(params_.summary_relative_keys);
}

template <typename scalar_t>
void Backward<scalar_t>::merge_keys() const {
  if (segments_.empty()) {
    for (int64_t index = 0; index < params_.batch * params_.key_heads;
         ++index) {
      writer_.clear(
          index / params_.key_heads,
          index % params_.key_heads,
          {0, params_.key_length});
    }
    return;
  }
  if (shared_keys_ == 0) {
    return;
  }
  const int64_t count = static_cast<int64_t>(segments_.size());
  at::parallel_for(
      0, count * params_.key_heads, 1, [&](int64_t begin, int64_t end) {
        const Scratch<acc_t> sum(key_width_ + value_width_);
        for (int64_t index = begin; index < end; ++index) {
          const WindowSegment& segment =
              segments_[static_cast<size_t>(index % count)];
          const HeadRow at =
              head_row(params_, segment.row, index / count * group_);
          merge_shared_keys<scalar_t>(
              segments_.data(), segment, writer_, shared_, at, sum.get());
        }
      });
}

template <typename scalar_t>
void Backward<scalar_t>::merge_summaries() const {
  const int64_t C = params_.summaries;
  std::vector<size_t> first; // segment of each row
  for (size_t index = 0; index < segments_.size(); ++index) {
    if (index == 0 || segments_[index].row != segments_[index - 1].row) {
      first.push_back(index);
    }
  }
  first.push_back(segments_.size());
  at::parallel_for(
      0, params_.rows * params_.key_heads, 1, [&](int64_t begin, int64_t end) {
        const int64_t size = summary_rows_ * (key_width_ + value_width_);
        const auto store = [&](void* gradient,
                               int64_t index,
                               const acc_t* sums,
                               int64_t width,
                               int64_t pitch) {
          for (int64_t c = 0; c < C && gradient != nullptr; ++c) {
            store_row(
                sums + c * pitch,
                width,
                static_cast<scalar_t*>(gradient) + (index * C + c) * width);
          }
        };
        for (int64_t index = begin; index < end; ++index) {
          const size_t row = static_cast<size_t>(index / params_.key_heads);
          const int64_t key_head = index % params_.key_heads;
          acc_t* sums = summary_key(first[row], key_head);
          for (size_t part = first[row] + 1; part < first[row + 1]; ++part) {
            add_row(summary_key(part, key_head), size, sums);
          }
          store(
              gradients_.grad_summary_key,
              index,
              sums,
              params_.head_dim,
              key_width_);
          store(
              gradients_.grad_summary_value,
              index,
              sums + summary_rows_ * key_width_,
              params_.value_dim,
              value_width_);
        }
      });
}

template <typename scalar_t>
void Backward<scalar_t>::merge_key_bias() const {
  const int64_t count = params_.batch * params_.key_length;
  at::parallel_for(0, count, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      acc_t sum = 0;
      for (int64_t head = 0; head < params_.key_heads; ++head) {
        sum += key_bias_.get()[head * count + index];
      }
      static_cast<scalar_t*>(gradients_.grad_key_bias)[index] =
          static_cast<scalar_t>(sum);
    }
  });
}

void backward_kernel(
    const WindowAttentionParams& params,
    const WindowAttentionGradients& gradients,
    c10::ScalarType dtype) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, dtype, "window_attention_backward", [&] {
        Backward<scalar_t>(params, gradients).run();
      });
}

} // namespace

} // namespace subquad

namespace at::native {

ALSO_REGISTER_AVX512_DISPATCH(
    subquad_window_attention_backward_stub,
    &subquad::backward_kernel)

} // namespace at::native
