#pragma once

#include "common/philox.h"
#include "common/window_attention.h"
#include "cuda/tile.cuh"

// What the queries of a tile see, and the logits of the pairs. The keys of all
// rows lie on one axis here: a tile of queries may hold the end of one packed
// row and the beginning of the next, and each query brings its own range.
namespace subquad::cuda {

// Bytes of shared memory that every device from compute capability 8.0 on
// grants a block on request (CUDA C++ Programming Guide, table of technical
// specifications: 8.6 and 8.9 have the least).
constexpr size_t kSharedLimit = 99 * 1024;
constexpr int64_t kMaxBlocks = 2147483647; // of a grid's first axis
constexpr int kInvalidConfiguration = 9;   // cudaErrorInvalidConfiguration

struct Sight {
  int64_t token; // of the query on the tensor's axis; -1: there is none
  int64_t row;
  int64_t line;   // of the bias
  int64_t origin; // rank of slot 0, wherever that lies
  int64_t begin;  // ranks of the keys that it sees
  int64_t end;
  int64_t limit; // it sees the summaries of its row before this one
};

// The last packed row that starts at or before `rank`; -1 without one.
__device__ inline int64_t packed_row(
    const WindowAttentionParams& params,
    int64_t rank) {
  int64_t low = -1;
  int64_t high = params.rows;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (params.query_spans[2 * middle] <= rank) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// `rank` counts from the start of the axis.
__device__ inline Sight
sight_of(const WindowAttentionParams& params, int64_t batch, int64_t rank) {
  Sight sight{-1, 0, 0, 0, 0, 0, 0};
  if (rank >= params.query_length) {
    return sight;
  }
  // Without an order the kernel writes zeros where no row is.
  sight.token = params.query_order == nullptr ? rank : -1;
  sight.row = params.packed ? packed_row(params, rank) : batch;
  if (sight.row < 0) {
    sight.row = 0;
    return sight;
  }
  const Span queries =
      clamped_row_span(params.query_spans, sight.row, params.query_length);
  if (rank < queries.start || rank >= queries.start + queries.length) {
    return sight;
  }
  const Span keys =
      clamped_row_span(params.key_spans, sight.row, params.key_length);
  sight.token = query_token(params, batch, rank);
  const int64_t position =
      query_position(params, batch, queries.start, rank, sight.token);
  const int64_t first = block_begin(position, params.window);
  const Range range = block_keys(position, first, params.window, keys.length);
  sight.line = position - first;
  sight.origin = keys.start + first - params.window.left;
  sight.begin = keys.start + range.begin;
  sight.end = keys.start + range.end;
  if (params.summaries > 0) {
    sight.limit = summary_limit(
        position, params.summary, clamped_summaries(params, sight.row));
  }
  return sight;
}

// The columns that a tile of queries meets, some at a time: first the keys from
// the first to the last that one of them sees, then the summaries of each of
// their rows. All threads of a block go through the same sequence.
struct Columns {
  int64_t begin; // rank of a key, or a summary
  int64_t row;   // whose summaries; -1: keys

  __device__ bool summaries() const {
    return row >= 0;
  }
};

// What the queries of a tile see together. Columns are visited kStep at a time.
template <int kStep>
class TileSight {
 public:
  __device__ TileSight(
      const WindowAttentionParams& params,
      const Sight* sights, // in shared memory
      int count)
      : sights_(sights),
        count_(count),
        scattered_(params.query_position != nullptr),
        keys_{0, 0},
        first_row_(0),
        last_row_(-1) {
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const Sight& sight = sights[i];
      if (sight.begin < sight.end) {
        keys_ = keys_.empty() ? Range{sight.begin, sight.end}
                              : Range{
                                    min_index(keys_.begin, sight.begin),
                                    max_index(keys_.end, sight.end)};
      }
      if (sight.limit > 0) {
        first_row_ = last_row_ < 0 ? sight.row : first_row_;
        last_row_ = sight.row;
      }
    }
  }

  __device__ Columns begin() const {
    return settle({keys_.begin, -1});
  }

  __device__ bool done(const Columns& columns) const {
    return columns.row > last_row_ && !(columns.row < 0);
  }

  __device__ Columns next(const Columns& columns) const {
    return settle({columns.begin + kStep, columns.row});
  }

 private:
  // The first columns from here on that some query sees.
  __device__ Columns settle(Columns columns) const {
    if (!columns.summaries()) {
      while (columns.begin < keys_.end && scattered_ &&
             !sees_keys(columns.begin)) {
        columns.begin += kStep;
      }
      if (columns.begin < keys_.end) {
        return columns;
      }
      columns = {0, first_row_};
    }
    while (columns.row <= last_row_ &&
           columns.begin >= summary_end(columns.row)) {
      columns = {0, columns.row + 1};
    }
    return columns;
  }

  __device__ bool sees_keys(int64_t begin) const {
#pragma unroll 1
    for (int i = 0; i < count_; ++i) {
      if (sights_[i].begin < begin + kStep && sights_[i].end > begin) {
        return true;
      }
    }
    return false;
  }

  __device__ int64_t summary_end(int64_t row) const {
    int64_t end = 0;
#pragma unroll 1
    for (int i = 0; i < count_; ++i) {
      if (sights_[i].row == row) {
        end = max_index(end, sights_[i].limit);
      }
    }
    return end;
  }

  const Sight* sights_;
  int count_;
  bool scattered_;
  Range keys_;
  int64_t first_row_;
  int64_t last_row_;
};

// The columns [begin, end) that the query sees, of those from columns.begin on.
struct Seen {
  int begin;
  int end;

  __device__ bool holds(int column) const {
    return column >= begin && column < end;
  }
};

__device__ __forceinline__ Seen
seen_columns(const Sight& sight, const Columns& columns, int count) {
  int64_t begin = sight.begin;
  int64_t end = sight.end;
  if (columns.summaries()) {
    begin = 0;
    end = sight.row == columns.row ? sight.limit : 0;
  }
  const auto place = [&](int64_t column) {
    return static_cast<int>(
        min_index(max_index(column - columns.begin, 0), count));
  };
  return {place(begin), place(end)};
}

// Head of query and key of a block.
struct Heads {
  int64_t batch;
  int64_t head;
  int64_t key_head;
};

template <typename scalar_t>
__device__ __forceinline__ const scalar_t* row_pointer(
    const void* data,
    const Strides& stride,
    int64_t batch,
    int64_t head,
    int64_t index) {
  return static_cast<const scalar_t*>(data) + batch * stride.batch +
      head * stride.head + index * stride.row;
}

// Address of a key or of a summary's key; null past the end of the axis.
template <typename scalar_t>
__device__ __forceinline__ const scalar_t* key_row(
    const WindowAttentionParams& params,
    const Heads& heads,
    const Columns& columns,
    int column) {
  const int64_t index = columns.begin + column;
  if (columns.summaries()) {
    return index >= params.summaries ? nullptr
                                     : row_pointer<scalar_t>(
                                           params.summary_key,
                                           params.summary_key_stride,
                                           columns.row,
                                           heads.key_head,
                                           index);
  }
  return index >= params.key_length
      ? nullptr
      : row_pointer<scalar_t>(
            params.key,
            params.key_stride,
            heads.batch,
            heads.key_head,
            key_token(params, heads.batch, index));
}

template <typename scalar_t>
__device__ __forceinline__ const scalar_t* value_row(
    const WindowAttentionParams& params,
    const Heads& heads,
    const Columns& columns,
    int column) {
  const int64_t index = columns.begin + column;
  if (columns.summaries()) {
    return index >= params.summaries ? nullptr
                                     : row_pointer<scalar_t>(
                                           params.summary_value,
                                           params.summary_value_stride,
                                           columns.row,
                                           heads.key_head,
                                           index);
  }
  return index >= params.key_length
      ? nullptr
      : row_pointer<scalar_t>(
            params.value,
            params.value_stride,
            heads.batch,
            heads.key_head,
            key_token(params, heads.batch, index));
}

// q . t for the lines of the tables of relative keys. These are read where a
// query is: the slot of a key differs from query to query, so that no product
// of two tiles has these numbers.
template <typename scalar_t>
__device__ inline acc_t<scalar_t> relative_logit(
    const scalar_t* query, // [D]
    const void* table,
    int64_t line,
    int64_t depth) {
  const scalar_t* relative = static_cast<const scalar_t*>(table) + line * depth;
  acc_t<scalar_t> sum = 0;
  for (int64_t d = 0; d < depth; ++d) {
    sum += to_acc(query[d]) * to_acc(relative[d]);
  }
  return sum;
}

// Whether logits are nothing but scaled products.
__device__ __forceinline__ bool has_bare_logits(
    const WindowAttentionParams& params) {
  return params.bias == nullptr && params.key_bias == nullptr &&
      params.relative_key == nullptr && params.summary_relative_key == nullptr;
}

// Logit of a query and a column that it sees; `product` is q . k.
template <typename scalar_t>
__device__ __forceinline__ acc_t<scalar_t> logit(
    const WindowAttentionParams& params,
    const Heads& heads,
    const Sight& sight,
    const Columns& columns,
    int column,
    const scalar_t* query, // [D]
    acc_t<scalar_t> product) {
  const int64_t index = columns.begin + column;
  acc_t<scalar_t> sum = static_cast<acc_t<scalar_t>>(params.scale) * product;
  if (columns.summaries()) {
    if (params.summary_relative_key != nullptr) {
      sum += relative_logit(
          query,
          static_cast<const scalar_t*>(params.summary_relative_key) +
              heads.head * params.summary_relative_key_head_stride,
          sight.limit - 1 - index,
          params.head_dim);
    }
    return sum;
  }
  const int64_t slot = index - sight.origin;
  if (params.bias != nullptr) {
    sum += to_acc(static_cast<const scalar_t*>(params.bias)
                      [heads.head * params.bias_head_stride +
                       sight.line * window_slots(params.window) + slot]);
  }
  if (params.key_bias != nullptr) {
    sum += to_acc(static_cast<const scalar_t*>(params.key_bias)
                      [heads.batch * params.key_length +
                       key_token(params, heads.batch, index)]);
  }
  if (params.relative_key != nullptr) {
    sum += relative_logit(
        query,
        static_cast<const scalar_t*>(params.relative_key) +
            heads.head * params.relative_key_head_stride,
        slot,
        params.head_dim);
  }
  return sum;
}

// Dropout of weights: 0, or 1 / (1 - probability).
class WeightDropout {
 public:
  __device__ explicit WeightDropout(const WindowAttentionParams& params)
      : dropout_{params.dropout, 0, 0}, factor_(1.0) {
    if (params.dropout_state != nullptr) {
      dropout_.seed = static_cast<uint64_t>(params.dropout_state[0]);
      dropout_.offset = static_cast<uint64_t>(params.dropout_state[1]);
      factor_ = 1.0 / (1.0 - params.dropout);
    }
  }

  // `rank` of the query, `index` of the key or of the summary.
  template <typename acc>
  __device__ acc factor(
      const WindowAttentionParams& params,
      const Heads& heads,
      int64_t rank,
      const Columns& columns,
      int column) const {
    const int64_t index = columns.begin + column;
    const uint64_t number = weight_index(
        params,
        heads.batch,
        heads.head,
        rank,
        columns.summaries() ? params.key_length + index : index);
    return dropout_.keep(number) ? static_cast<acc>(factor_) : acc(0);
  }

 private:
  Dropout dropout_;
  double factor_;
};

} // namespace subquad::cuda
