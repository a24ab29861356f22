#pragma once

#include "ops/window_attention/kernel_backward_tile.cuh"

// Gradients of keys and values, and of the summaries': sums over the queries
// that see them. A block owns a tile of keys of one key head and goes through
// the tiles of queries that may see one of them, one query head after the
// other.
namespace subquad::cuda {

// Ranks of the queries that may see a key of [begin, end), also ranks: a hull.
__device__ inline Range key_viewers(
    const WindowAttentionParams& params,
    int64_t batch,
    int64_t begin,
    int64_t end) {
  // The last packed row that starts at or before the key.
  const auto row_of = [&](int64_t key) {
    int64_t low = 0;
    int64_t high = params.rows;
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      if (params.key_spans[2 * middle] <= key) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  };
  const int64_t first_row = params.packed ? row_of(begin) : batch;
  const int64_t last_row = params.packed ? row_of(end - 1) : batch;
  Range viewers{0, 0};
  for (int64_t row = first_row; row <= last_row; ++row) {
    const Span keys =
        clamped_row_span(params.key_spans, row, params.key_length);
    const Span queries =
        clamped_row_span(params.query_spans, row, params.query_length);
    const int64_t first = max_index(begin - keys.start, 0);
    const int64_t last = min_index(end - keys.start, keys.length) - 1;
    if (first > last) {
      continue;
    }
    Range ranks{0, queries.length};
    if (params.query_position == nullptr) {
      const int64_t from = window_queries(first, params.window).begin;
      const int64_t to = window_queries(last, params.window).end;
      ranks.begin = max_index(from - params.query_offset, 0);
      ranks.end = min_index(to - params.query_offset, queries.length);
    }
    if (ranks.empty()) {
      continue;
    }
    ranks = {ranks.begin + queries.start, ranks.end + queries.start};
    viewers = viewers.empty() ? ranks
                              : Range{
                                    min_index(viewers.begin, ranks.begin),
                                    max_index(viewers.end, ranks.end)};
  }
  return viewers;
}

// Those of a segment of a row that may see summary `first` or a later one.
__device__ inline Range summary_viewers(
    const WindowAttentionParams& params,
    int64_t row,
    int64_t first,
    Range segment) {
  const Span queries =
      clamped_row_span(params.query_spans, row, params.query_length);
  if (params.query_position == nullptr) {
    const int64_t position = first_summary_query(first, params.summary);
    if (position > params.query_offset) {
      segment.begin = max_index(segment.begin, position - params.query_offset);
    }
  }
  segment.end = min_index(segment.end, queries.length);
  return {segment.begin + queries.start, segment.end + queries.start};
}

// Writes the hull of the keys that each tile of kRows queries sees. Grid: batch
// x tiles; block: one warp.
template <int kRows>
__global__ void window_attention_hull_kernel(
    WindowAttentionParams params,
    int64_t* hulls, // [B, tiles, 2]
    int64_t tiles) {
  const int64_t work = static_cast<int64_t>(blockIdx.x);
  const int64_t batch = work / tiles;
  int64_t begin = INT64_MAX;
  int64_t end = 0;
  for (int i = lane_index(); i < kRows; i += kWarpSize) {
    const Sight sight = sight_of(params, batch, work % tiles * kRows + i);
    if (sight.begin < sight.end) {
      begin = min_index(begin, sight.begin);
      end = max_index(end, sight.end);
    }
  }
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    begin = min_index(begin, __shfl_xor_sync(kAllLanes, begin, distance));
    end = max_index(end, __shfl_xor_sync(kAllLanes, end, distance));
  }
  if (lane_index() == 0) {
    hulls[2 * work] = begin;
    hulls[2 * work + 1] = end;
  }
}

// `begin`: rank of the first query of a tile.
struct QueryStep {
  int64_t head;
  int64_t begin;
};

// The tiles of queries that a tile of keys meets, for one head of its group
// after the other; all threads of a block go through the same sequence.
class QuerySteps {
 public:
  // With `hulls` (of this batch entry), which are of tiles of `rows` queries,
  // only tiles that see one of the `keys`, and viewers.begin starts a tile.
  __device__ QuerySteps(
      const Range& viewers,
      const Range& heads,
      const int64_t* hulls,
      const Range& keys,
      int rows)
      : viewers_(viewers),
        heads_(heads),
        hulls_(hulls),
        keys_(keys),
        rows_(rows) {
    viewers_.begin = skip(viewers_.begin);
  }

  __device__ QueryStep begin() const {
    return {viewers_.empty() ? heads_.end : heads_.begin, viewers_.begin};
  }

  __device__ bool done(const QueryStep& step) const {
    return step.head >= heads_.end;
  }

  __device__ QueryStep next(const QueryStep& step) const {
    const int64_t begin = skip(step.begin + rows_);
    return begin < viewers_.end ? QueryStep{step.head, begin}
                                : QueryStep{step.head + 1, viewers_.begin};
  }

 private:
  // The first tile from here on that sees a key: a lane looks at each.
  __device__ int64_t skip(int64_t begin) const {
    if (hulls_ == nullptr) {
      return begin;
    }
    for (; begin < viewers_.end; begin += kWarpSize * rows_) {
      const int64_t own = begin + lane_index() * rows_;
      const int64_t* hull = hulls_ + 2 * (own / rows_);
      const unsigned seen = __ballot_sync(
          kAllLanes,
          own < viewers_.end && hull[0] < keys_.end && hull[1] > keys_.begin);
      for (int lane = 0; lane < kWarpSize; ++lane) {
        if ((seen >> lane & 1u) != 0) {
          return begin + lane * rows_;
        }
      }
    }
    return viewers_.end;
  }

  Range viewers_;
  Range heads_;
  const int64_t* hulls_;
  Range keys_;
  int rows_;
};

// Shared memory of the kernels below: TileHeader, keys, then
//   for keys    values, gradients of the output and queries of a step,
//   for values  queries and a chunk of the gradients of the output of a step;
// the two of a step may take turns in one buffer.
template <typename scalar_t>
size_t
key_tile_bytes(const WindowAttentionParams& params, int rows, bool one_buffer) {
  const size_t column = sizeof(scalar_t) * rows;
  const size_t keys = column * tile_stride<scalar_t>(params.head_dim);
  const size_t values = column * tile_stride<scalar_t>(params.value_dim);
  return TileHeader<scalar_t>::bytes(rows) + keys + values +
      (one_buffer ? (keys < values ? values : keys) : keys + values);
}

template <typename scalar_t>
size_t
value_tile_bytes(const WindowAttentionParams& params, int rows, int columns) {
  const size_t column = sizeof(scalar_t) * rows;
  return TileHeader<scalar_t>::bytes(rows) +
      column *
      (2 * tile_stride<scalar_t>(params.head_dim) +
       tile_stride<scalar_t>(columns));
}

// A tile of keys or summaries and the queries of a step.
template <typename scalar_t, int kWarps>
class KeyTile {
 public:
  using acc = acc_t<scalar_t>;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kTiles = kRows / 8;

  __device__ KeyTile(
      const WindowAttentionParams& params,
      const WindowAttentionGradients& gradients,
      const BackwardWorkspace& workspace,
      const BackwardLayout& layout,
      unsigned char* shared)
      : header(shared, kRows),
        tiles(reinterpret_cast<scalar_t*>(
            shared + TileHeader<scalar_t>::bytes(kRows))),
        params_(params),
        gradients_(gradients),
        workspace_(workspace),
        layout_(layout),
        warp_(static_cast<int>(threadIdx.x) / kWarpSize) {
    int64_t work = static_cast<int64_t>(blockIdx.x);
    const auto take = [&](int64_t count) {
      const int64_t index = work % count;
      work /= count;
      return index;
    };
    columns = {take(layout.tiles) * kRows, -1};
    chunk = static_cast<int>(take(layout.chunks));
    segment = take(layout.segments);
    key_head = take(params.key_heads);
    row_ = work;
    batch = layout.summaries && params.packed ? 0 : work;
    if (layout.summaries) {
      columns.row = row_;
      viewers_ = summary_viewers(
          params,
          row_,
          columns.begin,
          {segment * workspace.summary_segment,
           (segment + 1) * workspace.summary_segment});
    } else {
      const int64_t end = min_index(columns.begin + kRows, params.key_length);
      viewers_ = key_viewers(params, batch, columns.begin, end);
      // Where tiles with hulls start, and other copies mostly too.
      viewers_.begin = viewers_.begin / kRows * kRows;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      own[half] = warp_ * kWarpRows + fragment_row(lane_index(), 2 * half);
    }
  }

  __device__ QuerySteps steps() const {
    const int64_t group = params_.heads / params_.key_heads;
    const bool hulls = workspace_.hulls != nullptr && !layout_.summaries;
    return QuerySteps(
        viewers_,
        {key_head * group, (key_head + 1) * group},
        hulls ? workspace_.hulls +
                2 * batch * ceil_divide(params_.query_length, kRows)
              : nullptr,
        {columns.begin, columns.begin + kRows},
        kRows);
  }

  __device__ Heads heads(int64_t head) const {
    return {batch, head, key_head};
  }

  // Reads what is known of a step's queries; needs a barrier before and after.
  __device__ void load(const QueryStep& step) {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= kRows) {
      return;
    }
    const int64_t rank = step.begin + thread;
    Sight sight{-1, 0, 0, 0, 0, 0, 0};
    if (rank < viewers_.end) {
      sight = sight_of(params_, batch, rank);
    }
    acc lse = -INFINITY;
    acc delta = 0;
    if (sight.token >= 0) {
      const int64_t number =
          query_number(params_, batch, step.head, sight.token);
      lse = static_cast<const acc*>(params_.logsumexp)[number];
      delta = static_cast<const acc*>(workspace_.delta)[number];
    }
    header.sights[thread] = sight;
    header.lse[thread] = lse;
    header.delta[thread] = delta;
    header.seen[thread] =
        takes_part(lse) ? seen_columns(sight, columns, kRows) : Seen{0, 0};
  }

  __device__ __forceinline__ void stage_keys(scalar_t* tile) const {
    stage_rows(
        tile,
        tile_stride<scalar_t>(params_.head_dim),
        kRows,
        static_cast<int>(params_.head_dim),
        layout_.vectors_key,
        params_.query,
        [&](int row) {
          return key_row<scalar_t>(params_, heads(0), columns, row);
        });
  }

  __device__ __forceinline__ void stage_values(scalar_t* tile) const {
    stage_rows(
        tile,
        tile_stride<scalar_t>(params_.value_dim),
        kRows,
        static_cast<int>(params_.value_dim),
        layout_.vectors_value,
        params_.query,
        [&](int row) {
          return value_row<scalar_t>(params_, heads(0), columns, row);
        });
  }

  // Queries of a step, or their gradients of the output.
  __device__ const scalar_t* step_row(
      const void* data,
      const Strides& stride,
      const QueryStep& step,
      int row) const {
    const int64_t rank = step.begin + row;
    return rank >= viewers_.end ? nullptr
                                : row_pointer<scalar_t>(
                                      data,
                                      stride,
                                      batch,
                                      step.head,
                                      query_token(params_, batch, rank));
  }

  __device__ __forceinline__ void stage_queries(
      scalar_t* tile,
      const QueryStep& step) const {
    stage_rows(
        tile,
        tile_stride<scalar_t>(params_.head_dim),
        kRows,
        static_cast<int>(params_.head_dim),
        layout_.vectors_query,
        params_.query,
        [&](int row) {
          return step_row(params_.query, params_.query_stride, step, row);
        });
  }

  __device__ __forceinline__ void stage_grad_output(
      scalar_t* tile,
      const QueryStep& step,
      int first_column,
      int width) const {
    stage_rows(
        tile,
        tile_stride<scalar_t>(width),
        kRows,
        width,
        layout_.vectors_grad_output,
        gradients_.grad_output,
        [&](int row) {
          const scalar_t* source = step_row(
              gradients_.grad_output, gradients_.grad_output_stride, step, row);
          return source == nullptr ? source : source + first_column;
        });
  }

  // P^T of the warp's keys and the step's queries, without dropout.
  __device__ __forceinline__ void to_weights(
      Fragment<acc, kTiles>& weights,
      const scalar_t* keys,
      const scalar_t* queries,
      const QueryStep& step) const {
    const int lane = lane_index();
    const int stride = tile_stride<scalar_t>(params_.head_dim);
    weights.zero();
    multiply_transposed<scalar_t, kTiles>(
        weights,
        keys + warp_ * kWarpRows * stride,
        stride,
        queries,
        stride,
        padded_width(params_.head_dim));
    const bool bare = has_bare_logits(params_);
    if (!bare) {
      for_each_tile(weights, [&](int n, acc(&v)[4]) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int query = fragment_column(lane, n, e);
          if (sees(query, e / 2)) {
            v[e] = logit(
                params_,
                heads(step.head),
                header.sights[query],
                columns,
                own[e / 2],
                queries + query * stride,
                v[e]);
          }
        }
      });
    }
    const acc scale = bare ? static_cast<acc>(params_.scale) : acc(1);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int query = fragment_column(lane, n, e);
        acc& weight = weights.v[n][e];
        weight = sees(query, e / 2)
            ? exponential(weight * scale - header.lse[query])
            : acc(0);
      }
    }
  }

  __device__ __forceinline__ void drop(
      Fragment<acc, kTiles>& fragment,
      const QueryStep& step) const {
    if (params_.dropout_state == nullptr) {
      return;
    }
    const int lane = lane_index();
    const WeightDropout dropout(params_);
    for_each_tile(fragment, [&](int n, acc(&v)[4]) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int query = fragment_column(lane, n, e);
        if (sees(query, e / 2)) {
          v[e] *= dropout.factor<acc>(
              params_,
              heads(step.head),
              step.begin + query,
              columns,
              own[e / 2]);
        }
      }
    });
  }

  // Whether the step's query sees the lane's key of that half.
  __device__ __forceinline__ bool sees(int query, int half) const {
    return header.seen[query].holds(own[half]);
  }

  // Adds the products of the rows that clear_nonfinite_rows marked.
  template <int kOutputs, typename RowOf>
  __device__ __forceinline__ void add_marked(
      Fragment<acc, kOutputs>& output,
      const Fragment<acc, kTiles>& left,
      int width,
      RowOf row_of) const {
    for (int query = 0; query < kRows; ++query) {
      if (header.marks[query] != 0) {
        const bool seen[2] = {sees(query, 0), sees(query, 1)};
        multiply_row<scalar_t, kTiles, kOutputs>(
            output, left, query, row_of(query), width, seen);
      }
    }
  }

  // Token of the lane's key, -1 where there is nothing to be written: past the
  // end of the axis and, with an order, outside the row.
  __device__ int64_t token(int half) const {
    const int64_t rank = columns.begin + own[half];
    if (rank >= params_.key_length) {
      return -1;
    }
    if (params_.key_order != nullptr) {
      const Span span =
          clamped_row_span(params_.key_spans, batch, params_.key_length);
      if (rank < span.start || rank >= span.start + span.length) {
        return -1;
      }
    }
    return key_token(params_, batch, rank);
  }

  // Writes columns of the gradient of the keys or values, or a part of that of
  // the summaries.
  template <int kOutputs>
  __device__ __forceinline__ void store(
      const Fragment<acc, kOutputs>& output,
      acc factor,
      int first_column,
      int width, // columns that exist from there on
      void* gradient,
      const Strides& stride,
      void* parts,
      int64_t depth) const {
    const int lane = lane_index();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto each = [&](const auto& write) {
#pragma unroll
        for (int n = 0; n < kOutputs; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int column = fragment_column(lane, n, e);
            if (column < width) {
              write(column, output.v[n][2 * half + e] * factor);
            }
          }
        }
      };
      if (layout_.summaries) {
        const int64_t index = columns.begin + own[half];
        if (index < params_.summaries) {
          const int64_t line =
              ((segment * params_.rows + row_) * params_.key_heads + key_head) *
                  params_.summaries +
              index;
          acc* target = static_cast<acc*>(parts) + line * depth + first_column;
          each([&](int column, acc x) { target[column] = x; });
        }
      } else if (const int64_t own_token = token(half); own_token >= 0) {
        scalar_t* target = static_cast<scalar_t*>(gradient) +
            batch * stride.batch + key_head * stride.head +
            own_token * stride.row + first_column;
        each(
            [&](int column, acc x) { target[column] = from_acc<scalar_t>(x); });
      }
    }
  }

  const TileHeader<scalar_t> header;
  scalar_t* const tiles; // the rest of shared memory
  Columns columns;       // the keys
  int chunk;
  int64_t segment;
  int64_t key_head;
  int64_t batch;
  int own[2]; // the lane's keys

 private:
  const WindowAttentionParams& params_;
  const WindowAttentionGradients& gradients_;
  const BackwardWorkspace& workspace_;
  const BackwardLayout& layout_;
  const int warp_;
  int64_t row_; // of the batch, or packed
  Range viewers_;
};

// Grid: rows or batch x key heads x segments x chunks of D x tiles of keys, on
// one axis, tiles fastest. Block: kWarps warps; each owns 16 keys. Shared:
// key_tile_bytes. Barriers: of for_each_step and all_of_block.
template <typename scalar_t, int kWarps, int kColumns>
__global__ void __launch_bounds__(kWarps* kWarpSize, 1)
    window_attention_backward_key_kernel(
        WindowAttentionParams params,
        WindowAttentionGradients gradients,
        BackwardWorkspace workspace,
        BackwardLayout layout) {
  using acc = acc_t<scalar_t>;
  using Tile = KeyTile<scalar_t, kWarps>;
  constexpr int kRows = Tile::kRows;
  constexpr int kTiles = Tile::kTiles;

  SUBQUAD_SHARED(shared);
  Tile tile(params, gradients, workspace, layout, shared);
  const int lane = lane_index();
  const int warp_row = static_cast<int>(threadIdx.x) / kWarpSize * kWarpRows;
  const int depth = static_cast<int>(params.head_dim);
  const int value_depth = static_cast<int>(params.value_dim);
  const int key_stride = tile_stride<scalar_t>(depth);
  const int value_stride = tile_stride<scalar_t>(value_depth);
  scalar_t* keys = tile.tiles;                           // [kRows, D]
  scalar_t* values = keys + kRows * key_stride;          // [kRows, M]
  scalar_t* grad_output = values + kRows * value_stride; // [kRows, M]
  scalar_t* queries =
      layout.one_buffer ? grad_output : grad_output + kRows * value_stride;
  const int first_column = tile.chunk * kColumns;
  const int width = static_cast<int>(min_index(depth - first_column, kColumns));
  const bool with_bias =
      workspace.key_bias != nullptr && !layout.summaries && tile.chunk == 0;

  tile.stage_keys(keys);
  tile.stage_values(values);
  const QuerySteps steps = tile.steps();
  Fragment<acc, kColumns / 8> output;
  acc bias[2];
  // As in the kernel for queries: the second pass takes queries with NaN or
  // infinity out of the products.
  for (int pass = 0; pass < 2; ++pass) {
    Fragment<acc, kTiles> gradient; // of the weights, then of the logits
    output.zero();
    bias[0] = bias[1] = 0;
    for_each_step(
        steps,
        layout.one_buffer,
        [&](const QueryStep& step) {
          tile.stage_grad_output(grad_output, step, 0, value_depth);
        },
        [&](const QueryStep& step) {
          tile.load(step);
          gradient.zero();
          multiply_transposed<scalar_t, kTiles>(
              gradient,
              values + warp_row * value_stride,
              value_stride,
              grad_output,
              value_stride,
              padded_width(value_depth));
        },
        [&](const QueryStep& step) { tile.stage_queries(queries, step); },
        [&](const QueryStep& step) {
          Fragment<acc, kTiles> weights;
          tile.to_weights(weights, keys, queries, step);
          tile.drop(gradient, step);
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const int query = fragment_column(lane, n, e);
              acc& x = gradient.v[n][e];
              x = tile.sees(query, e / 2)
                  ? weights.v[n][e] * (x - tile.header.delta[query])
                  : acc(0);
              bias[e / 2] += x;
            }
          }
          if (pass > 0) {
            __syncthreads();
            clear_nonfinite_rows(
                queries, key_stride, kRows, depth, tile.header.marks);
            __syncthreads();
          }
          multiply<scalar_t, kTiles, kColumns / 8>(
              output, gradient, queries + first_column, key_stride, width);
          if (pass > 0) {
            tile.add_marked(output, gradient, width, [&](int query) {
              return tile.step_row(
                         params.query, params.query_stride, step, query) +
                  first_column;
            });
          }
        });
    if (pass == 0 &&
        all_of_block<kWarps>(all_finite(output), tile.header.votes)) {
      break;
    }
  }

  if (layout.summaries || gradients.grad_key != nullptr) {
    tile.store(
        output,
        static_cast<acc>(params.scale),
        first_column,
        width,
        gradients.grad_key,
        gradients.grad_key_stride,
        workspace.summary_key,
        params.head_dim);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const acc sum = row_sum(bias[half]);
    const int64_t rank = tile.columns.begin + tile.own[half];
    if (with_bias && lane % 4 == 0 && rank < params.key_length) {
      static_cast<acc*>(workspace.key_bias)
          [(tile.key_head * params.batch + tile.batch) * params.key_length +
           rank] = sum;
    }
  }
}

// Grid: rows or batch x key heads x segments x chunks of M x tiles of keys, on
// one axis, tiles fastest. Block: kWarps warps; each owns 16 keys. Shared:
// value_tile_bytes. Barriers: of for_each_step and all_of_block, and one for
// what is known of the queries.
template <typename scalar_t, int kWarps, int kColumns>
__global__ void __launch_bounds__(kWarps* kWarpSize, 1)
    window_attention_backward_value_kernel(
        WindowAttentionParams params,
        WindowAttentionGradients gradients,
        BackwardWorkspace workspace,
        BackwardLayout layout) {
  using acc = acc_t<scalar_t>;
  using Tile = KeyTile<scalar_t, kWarps>;
  constexpr int kRows = Tile::kRows;
  constexpr int kTiles = Tile::kTiles;

  SUBQUAD_SHARED(shared);
  Tile tile(params, gradients, workspace, layout, shared);
  const int key_stride = tile_stride<scalar_t>(params.head_dim);
  const int first_column = tile.chunk * kColumns;
  const int width =
      static_cast<int>(min_index(params.value_dim - first_column, kColumns));
  const int stride = tile_stride<scalar_t>(width);
  scalar_t* keys = tile.tiles;                          // [kRows, D]
  scalar_t* queries = keys + kRows * key_stride;        // [kRows, D]
  scalar_t* grad_output = queries + kRows * key_stride; // [kRows, width]

  tile.stage_keys(keys);
  const QuerySteps steps = tile.steps();
  Fragment<acc, kColumns / 8> output;
  for (int pass = 0; pass < 2; ++pass) {
    Fragment<acc, kTiles> weights;
    output.zero();
    for_each_step(
        steps,
        layout.one_buffer,
        [&](const QueryStep& step) { tile.stage_queries(queries, step); },
        [&](const QueryStep& step) {
          tile.load(step);
          __syncthreads();
          tile.to_weights(weights, keys, queries, step);
          tile.drop(weights, step);
        },
        [&](const QueryStep& step) {
          tile.stage_grad_output(grad_output, step, first_column, width);
        },
        [&](const QueryStep& step) {
          if (pass > 0) {
            clear_nonfinite_rows(
                grad_output, stride, kRows, width, tile.header.marks);
            __syncthreads();
          }
          multiply<scalar_t, kTiles, kColumns / 8>(
              output, weights, grad_output, stride, width);
          if (pass > 0) {
            tile.add_marked(output, weights, width, [&](int query) {
              return tile.step_row(
                         gradients.grad_output,
                         gradients.grad_output_stride,
                         step,
                         query) +
                  first_column;
            });
          }
        });
    if (pass == 0 &&
        all_of_block<kWarps>(all_finite(output), tile.header.votes)) {
      break;
    }
  }
  tile.store(
      output,
      acc(1),
      first_column,
      width,
      gradients.grad_value,
      gradients.grad_value_stride,
      workspace.summary_value,
      params.value_dim);
}

// Tiles, segments and rows of a launch for keys or for summaries.
struct KeyWork {
  bool summaries;
  bool values;

  template <typename Shape>
  int64_t blocks(
      BackwardLayout& layout,
      const WindowAttentionParams& params,
      const BackwardWorkspace& workspace,
      Shape) const {
    const int64_t count = summaries ? params.summaries : params.key_length;
    const int64_t columns = values ? params.value_dim : params.head_dim;
    layout.summaries = summaries;
    layout.tiles = ceil_divide(count, Shape::kRows);
    layout.segments = summaries ? workspace.summary_segments : 1;
    layout.chunks = static_cast<int>(ceil_divide(columns, Shape::kColumns));
    return layout.tiles * layout.chunks * layout.segments * params.key_heads *
        (summaries ? params.rows : params.batch);
  }
};

template <typename scalar_t, typename Launcher>
int launch_backward_keys(
    Launcher&& launch,
    const WindowAttentionParams& params,
    const WindowAttentionGradients& gradients,
    const BackwardWorkspace& workspace,
    const KeyWork& work) {
  const auto bytes = [&](int rows) {
    return key_tile_bytes<scalar_t>(params, rows, false);
  };
  const int64_t columns = work.values ? params.value_dim : params.head_dim;
  return with_tile_shape<scalar_t>(columns, bytes, [&](auto shape) {
    using Shape = decltype(shape);
    BackwardLayout layout = backward_layout<scalar_t>(params, gradients);
    const int64_t blocks = work.blocks(layout, params, workspace, shape);
    if (work.values) {
      return launch_blocks(
          launch,
          window_attention_backward_value_kernel<
              scalar_t,
              Shape::kWarps,
              Shape::kColumns>,
          blocks,
          Shape::kWarps,
          value_tile_bytes<scalar_t>(params, Shape::kRows, Shape::kColumns),
          params,
          gradients,
          workspace,
          layout);
    }
    layout.one_buffer = bytes(Shape::kRows) > kSharedLimit;
    return launch_blocks(
        launch,
        window_attention_backward_key_kernel<
            scalar_t,
            Shape::kWarps,
            Shape::kColumns>,
        blocks,
        Shape::kWarps,
        key_tile_bytes<scalar_t>(params, Shape::kRows, layout.one_buffer),
        params,
        gradients,
        workspace,
        layout);
  });
}

// With a table of positions; the tiles are those of the kernels above.
template <typename scalar_t, typename Launcher>
int launch_hulls(
    Launcher&& launch,
    const WindowAttentionParams& params,
    const BackwardWorkspace& workspace) {
  const auto bytes = [&](int rows) {
    return key_tile_bytes<scalar_t>(params, rows, false);
  };
  return with_tile_shape<scalar_t>(0, bytes, [&](auto shape) {
    constexpr int kRows = decltype(shape)::kRows;
    const int64_t tiles = ceil_divide(params.query_length, kRows);
    return launch_blocks(
        launch,
        window_attention_hull_kernel<kRows>,
        tiles * params.batch,
        1,
        size_t{0},
        params,
        workspace.hulls,
        tiles);
  });
}

} // namespace subquad::cuda
