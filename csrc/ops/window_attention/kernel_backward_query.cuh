#pragma once

#include "ops/window_attention/kernel_backward_tile.cuh"

// The gradients that are sums over what a query sees, or over the queries of a
// tile: of the queries, and of the tables that logits are read from.
namespace subquad::cuda {

// Shared memory of a QueryTile; `key_bytes` is the least that the buffer of the
// keys must hold.
template <typename scalar_t>
size_t query_tile_bytes(
    const WindowAttentionParams& params,
    int rows,
    bool one_buffer,
    size_t key_bytes) {
  const size_t column = sizeof(scalar_t) * rows;
  const size_t values = column * tile_stride<scalar_t>(params.value_dim);
  const size_t queries = column * tile_stride<scalar_t>(params.head_dim);
  const size_t keys = queries < key_bytes ? key_bytes : queries;
  const size_t larger = values < keys ? keys : values;
  return TileHeader<scalar_t>::bytes(rows) + queries + values +
      (one_buffer ? larger : values + keys);
}

// A tile of queries of one head and what it meets. Shared memory: TileHeader,
// queries, gradients of the output, then values and keys of a step, which may
// take turns in one buffer.
template <typename scalar_t, int kWarps>
class QueryTile {
 public:
  using acc = acc_t<scalar_t>;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kTiles = kRows / 8;

  __device__ QueryTile(
      const WindowAttentionParams& params,
      const WindowAttentionGradients& gradients,
      const BackwardWorkspace& workspace,
      const BackwardLayout& layout,
      const Heads& heads,
      unsigned char* shared)
      : header(shared, kRows),
        depth(static_cast<int>(params.head_dim)),
        key_stride(tile_stride<scalar_t>(params.head_dim)),
        queries(reinterpret_cast<scalar_t*>(
            shared + TileHeader<scalar_t>::bytes(kRows))),
        params_(params),
        gradients_(gradients),
        workspace_(workspace),
        layout_(layout),
        heads_(heads),
        warp_(static_cast<int>(threadIdx.x) / kWarpSize),
        value_stride_(tile_stride<scalar_t>(params.value_dim)),
        grad_output_(queries + kRows * key_stride),
        values_(grad_output_ + kRows * value_stride_),
        keys_(layout.one_buffer ? values_ : values_ + kRows * value_stride_) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      own[half] = warp_ * kWarpRows + fragment_row(lane_index(), 2 * half);
    }
  }

  // Chooses the queries from rank `first` on. Barriers: one.
  __device__ void load(int64_t first) {
    first_ = first;
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < kRows) {
      header.sights[thread] = sight_of(params_, heads_.batch, first + thread);
    }
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t token = header.sights[own[half]].token;
      lse_[half] = -INFINITY;
      delta_[half] = 0;
      if (token >= 0) {
        const int64_t number =
            query_number(params_, heads_.batch, heads_.head, token);
        lse_[half] = static_cast<const acc*>(params_.logsumexp)[number];
        delta_[half] = static_cast<const acc*>(workspace_.delta)[number];
      }
    }
  }

  // Calls use(dS, columns, seen, keys) for the columns that one of the queries
  // sees, some at a time, with their keys in shared memory; the threads of a
  // block call it together.
  template <typename Use>
  __device__ __forceinline__ void walk(Use use) {
    stage(
        queries,
        key_stride,
        depth,
        layout_.vectors_query,
        params_.query,
        params_.query_stride);
    stage(
        grad_output_,
        value_stride_,
        static_cast<int>(params_.value_dim),
        layout_.vectors_grad_output,
        gradients_.grad_output,
        gradients_.grad_output_stride);
    const TileSight<kRows> sight(params_, header.sights, kRows);
    Fragment<acc, kTiles> gradient; // of the weights, then of the logits
    for_each_step(
        sight,
        layout_.one_buffer,
        [&](const Columns& at) {
          stage_rows(
              values_,
              value_stride_,
              kRows,
              static_cast<int>(params_.value_dim),
              layout_.vectors_value,
              params_.query,
              [&](int row) {
                return value_row<scalar_t>(params_, heads_, at, row);
              });
        },
        [&](const Columns&) {
          gradient.zero();
          multiply_transposed<scalar_t, kTiles>(
              gradient,
              grad_output_ + warp_ * kWarpRows * value_stride_,
              value_stride_,
              values_,
              value_stride_,
              padded_width(params_.value_dim));
        },
        [&](const Columns& at) {
          stage_rows(
              keys_,
              key_stride,
              kRows,
              depth,
              layout_.vectors_key,
              params_.query,
              [&](int row) {
                return key_row<scalar_t>(params_, heads_, at, row);
              });
        },
        [&](const Columns& at) {
          Seen seen[2];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            seen[half] = takes_part(lse_[half])
                ? seen_columns(header.sights[own[half]], at, kRows)
                : Seen{0, 0};
          }
          to_logits(gradient, at, seen);
          use(gradient, at, seen, keys_);
        });
  }

  // Public: what users of a tile read.
  const TileHeader<scalar_t> header;
  const int depth;
  const int key_stride;
  scalar_t* const queries; // [kRows, D]
  int own[2];              // the lane's queries

 private:
  __device__ __forceinline__ void stage(
      scalar_t* tile,
      int stride,
      int width,
      bool vectors,
      const void* data,
      const Strides& strides) {
    stage_rows(tile, stride, kRows, width, vectors, data, [&](int row) {
      const int64_t token = header.sights[row].token;
      return token < 0 ? nullptr
                       : row_pointer<scalar_t>(
                             data, strides, heads_.batch, heads_.head, token);
    });
  }

  // From the gradient of the weights to that of the logits.
  __device__ __forceinline__ void to_logits(
      Fragment<acc, kTiles>& gradient,
      const Columns& at,
      const Seen (&seen)[2]) {
    const int lane = lane_index();
    Fragment<acc, kTiles> weights; // first products, then logits
    weights.zero();
    multiply_transposed<scalar_t, kTiles>(
        weights,
        queries + warp_ * kWarpRows * key_stride,
        key_stride,
        keys_,
        key_stride,
        padded_width(depth));
    const bool bare = has_bare_logits(params_);
    if (!bare) {
      for_each_tile(weights, [&](int n, acc(&v)[4]) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = fragment_column(lane, n, e);
          if (seen[e / 2].holds(column)) {
            v[e] = logit(
                params_,
                heads_,
                header.sights[own[e / 2]],
                at,
                column,
                queries + own[e / 2] * key_stride,
                v[e]);
          }
        }
      });
    }
    if (params_.dropout_state != nullptr) {
      const WeightDropout dropout(params_);
      for_each_tile(gradient, [&](int n, acc(&v)[4]) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = fragment_column(lane, n, e);
          if (seen[e / 2].holds(column)) {
            v[e] *= dropout.factor<acc>(
                params_, heads_, first_ + own[e / 2], at, column);
          }
        }
      });
    }
    const acc scale = bare ? static_cast<acc>(params_.scale) : acc(1);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int half = e / 2;
        const acc weight = exponential(weights.v[n][e] * scale - lse_[half]);
        gradient.v[n][e] = seen[half].holds(fragment_column(lane, n, e))
            ? weight * (gradient.v[n][e] - delta_[half])
            : acc(0);
      }
    }
  }

  const WindowAttentionParams& params_;
  const WindowAttentionGradients& gradients_;
  const BackwardWorkspace& workspace_;
  const BackwardLayout& layout_;
  const Heads heads_;
  const int warp_;
  const int value_stride_;
  scalar_t* const grad_output_; // [kRows, M]
  scalar_t* const values_;      // [kRows, M]
  scalar_t* const keys_;        // [kRows, D]
  int64_t first_ = 0;
  acc lse_[2]; // of the lane's queries
  acc delta_[2];
};

// output += dS r, where row i of r is the line of a relative table that query i
// reads for the column.
template <typename scalar_t, int kTiles, int kOutputs>
__device__ __forceinline__ void add_relative_keys(
    Fragment<acc_t<scalar_t>, kOutputs>& output,
    Fragment<acc_t<scalar_t>, kTiles>& gradient,
    const scalar_t* table, // from the first column of the chunk on
    int64_t depth,
    int columns,
    const Seen (&seen)[2],
    const int64_t (&first_line)[2], // that the lane's queries read for column 0
    int step) {                     // from one column to the next
  using acc = acc_t<scalar_t>;
  const int lane = lane_index();
  for_each_tile(gradient, [&](int n, acc(&v)[4]) {
#pragma unroll 1
    for (int source = 0; source < 4; ++source) {
      const int from = lane / 4 * 4 + source;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const acc left = __shfl_sync(kAllLanes, v[e], from);
        const int column = n * 8 + source * 2 + e % 2;
        if (!seen[e / 2].holds(column)) {
          continue;
        }
        const scalar_t* line =
            table + (first_line[e / 2] + step * column) * depth;
#pragma unroll
        for (int m = 0; m < kOutputs; ++m) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int place = fragment_column(lane, m, i);
            if (place < columns) {
              output.v[m][e / 2 * 2 + i] += left * to_acc(line[place]);
            }
          }
        }
      }
    }
  });
}

// Grid: batch x heads x chunks of D x tiles of queries, on one axis, tiles
// fastest. Block: kWarps warps; each owns 16 queries. Shared: QueryTile.
// Barriers: those of QueryTile, for_each_step and all_of_block.
template <typename scalar_t, int kWarps, int kColumns>
__global__ void __launch_bounds__(kWarps* kWarpSize, 1)
    window_attention_backward_query_kernel(
        WindowAttentionParams params,
        WindowAttentionGradients gradients,
        BackwardWorkspace workspace,
        BackwardLayout layout) {
  using acc = acc_t<scalar_t>;
  using Tile = QueryTile<scalar_t, kWarps>;
  constexpr int kRows = Tile::kRows;

  const int64_t work = static_cast<int64_t>(blockIdx.x);
  const int64_t first = work % layout.tiles * kRows;
  const int64_t chunk = work / layout.tiles % layout.chunks;
  const int64_t head = work / layout.tiles / layout.chunks % params.heads;
  const int64_t batch = work / layout.tiles / layout.chunks / params.heads;
  const Heads heads{batch, head, head / (params.heads / params.key_heads)};
  const int lane = lane_index();
  const int first_column = static_cast<int>(chunk) * kColumns;
  const int columns =
      static_cast<int>(min_index(params.head_dim - first_column, kColumns));

  SUBQUAD_SHARED(shared);
  Tile tile(params, gradients, workspace, layout, heads, shared);
  tile.load(first);
  // Relative keys are not scaled: then dS is, instead of the sum.
  const bool relative =
      params.relative_key != nullptr || params.summary_relative_key != nullptr;
  const acc scale = static_cast<acc>(params.scale);
  Fragment<acc, kColumns / 8> output;

  // The second pass happens only where the first gave NaN or infinity: then a
  // key may hold some that not every query of the tile sees, and such keys are
  // taken out of the products.
  for (int pass = 0; pass < 2; ++pass) {
    output.zero();
    tile.walk([&](auto& gradient,
                  const Columns& at,
                  const Seen(&seen)[2],
                  scalar_t* keys) {
      constexpr int kTiles = Tile::kTiles;
      if (relative) {
        int64_t line[2];
        const bool summaries = at.summaries();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Sight& sight = tile.header.sights[tile.own[half]];
          line[half] =
              summaries ? sight.limit - 1 - at.begin : at.begin - sight.origin;
        }
        const void* table =
            summaries ? params.summary_relative_key : params.relative_key;
        if (table != nullptr) {
          add_relative_keys<scalar_t, kTiles, kColumns / 8>(
              output,
              gradient,
              static_cast<const scalar_t*>(table) +
                  head *
                      (summaries ? params.summary_relative_key_head_stride
                                 : params.relative_key_head_stride) +
                  first_column,
              params.head_dim,
              columns,
              seen,
              line,
              summaries ? -1 : 1);
        }
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            gradient.v[n][e] *= scale;
          }
        }
      }
      if (pass > 0) {
        __syncthreads();
        clear_nonfinite_rows(
            keys, tile.key_stride, kRows, tile.depth, tile.header.marks);
        __syncthreads();
      }
      multiply<scalar_t, kTiles, kColumns / 8>(
          output, gradient, keys + first_column, tile.key_stride, columns);
      if (pass > 0) {
        for (int row = 0; row < kRows; ++row) {
          if (tile.header.marks[row] != 0) {
            const bool sees[2] = {seen[0].holds(row), seen[1].holds(row)};
            multiply_row<scalar_t, kTiles, kColumns / 8>(
                output,
                gradient,
                row,
                key_row<scalar_t>(params, heads, at, row) + first_column,
                columns,
                sees);
          }
        }
      }
    });
    if (pass == 0 &&
        all_of_block<kWarps>(all_finite(output), tile.header.votes)) {
      break;
    }
  }

  const acc factor = relative ? acc(1) : scale;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t token = tile.header.sights[tile.own[half]].token;
    if (token < 0) {
      continue;
    }
    scalar_t* target = static_cast<scalar_t*>(gradients.grad_query) +
        batch * gradients.grad_query_stride.batch +
        head * gradients.grad_query_stride.head +
        token * gradients.grad_query_stride.row + first_column;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = fragment_column(lane, n, e);
        if (column < columns) {
          target[column] =
              from_acc<scalar_t>(output.v[n][2 * half + e] * factor);
        }
      }
    }
  }
}

// Gradients of tables, which many queries add to. A block goes through a
// segment of queries and adds to its own copies. All that belongs to a slot is
// added by one thread (or by one warp, of which each lane has its columns), in
// the order of steps and queries.
template <typename scalar_t, int kWarps>
class TableSums {
 public:
  using acc = acc_t<scalar_t>;
  using Tile = QueryTile<scalar_t, kWarps>;
  static constexpr int kRows = Tile::kRows;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kStride = kRows + 1; // of dS in shared memory

  __device__ TableSums(const WindowAttentionParams& params, const Tile& tile)
      : params_(params), tile_(tile) {}

  // Adds dS to a bias [block, slots]. Thread t owns the slots t + n kThreads;
  // a query meets at most one of them in a step.
  __device__ void
  add_bias(acc* table, const acc* grad_logits, const Columns& at) const {
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t slots = window_slots(params_.window);
    int64_t place = -1;
    acc sum = 0;
    for (int i = 0; i < kRows; ++i) {
      const Sight& sight = tile_.header.sights[i];
      const int64_t first = at.begin - sight.origin;
      const int column = static_cast<int>(
          (thread - first % kThreads + 2 * kThreads) % kThreads);
      if (!tile_.header.seen[i].holds(column)) {
        continue;
      }
      const int64_t next = sight.line * slots + first + column;
      if (next != place) {
        if (place >= 0) {
          table[place] += sum;
        }
        place = next;
        sum = 0;
      }
      sum += grad_logits[i * kStride + column];
    }
    if (place >= 0) {
      table[place] += sum;
    }
  }

  // Adds dS^T Q to a table of relative keys [slots, D], skewed: each query
  // meets a slot in another column. Warp w owns the slots w + n kWarps.
  __device__ void
  add_relative(acc* table, const acc* grad_logits, const Columns& at) const {
    constexpr int kParts = 8; // of 32 columns; D <= 256
    const int lane = lane_index();
    const int64_t warp = threadIdx.x / kWarpSize;
    const int step = at.summaries() ? -1 : 1;
    int64_t begin = INT64_MAX;
    int64_t end = 0;
    for (int i = 0; i < kRows; ++i) {
      const Seen& seen = tile_.header.seen[i];
      if (seen.begin < seen.end) {
        const int64_t first = first_slot(i, at) + step * seen.begin;
        const int64_t last = first_slot(i, at) + step * (seen.end - 1);
        begin = min_index(begin, min_index(first, last));
        end = max_index(end, max_index(first, last) + 1);
      }
    }
    if (begin >= end) {
      return;
    }
    const int64_t shift = (warp - begin % kWarps + kWarps) % kWarps;
    for (int64_t slot = begin + shift; slot < end; slot += kWarps) {
      acc sum[kParts] = {};
      for (int i = 0; i < kRows; ++i) {
        const int64_t column = (slot - first_slot(i, at)) * step;
        if (column < tile_.header.seen[i].begin ||
            column >= tile_.header.seen[i].end) {
          continue;
        }
        const acc factor = grad_logits[i * kStride + column];
        const scalar_t* query = tile_.queries + i * tile_.key_stride;
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          const int d = part * kWarpSize + lane;
          if (d < tile_.depth) {
            sum[part] += factor * to_acc(query[d]);
          }
        }
      }
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int d = part * kWarpSize + lane;
        if (d < tile_.depth) {
          table[slot * tile_.depth + d] += sum[part];
        }
      }
    }
  }

 private:
  // That query `i` reads for the first column.
  __device__ int64_t first_slot(int i, const Columns& at) const {
    const Sight& sight = tile_.header.sights[i];
    return at.summaries() ? sight.limit - 1 - at.begin
                          : at.begin - sight.origin;
  }

  const WindowAttentionParams& params_;
  const Tile& tile_;
};

// Grid: batch x segments x heads. Block: kWarps warps; shared: QueryTile, whose
// keys make room for dS once they are used. Barriers: after the tables are
// zero, after each tile, and those of QueryTile and for_each_step.
template <typename scalar_t, int kWarps>
__global__ void __launch_bounds__(kWarps* kWarpSize, 1)
    window_attention_backward_tables_kernel(
        WindowAttentionParams params,
        WindowAttentionGradients gradients,
        BackwardWorkspace workspace,
        BackwardLayout layout) {
  using acc = acc_t<scalar_t>;
  using Tile = QueryTile<scalar_t, kWarps>;
  using Sums = TableSums<scalar_t, kWarps>;
  constexpr int kRows = Tile::kRows;

  const int64_t work = static_cast<int64_t>(blockIdx.x);
  const int64_t head = work % params.heads;
  const int64_t segment = work / params.heads % layout.segments;
  const int64_t batch = work / params.heads / layout.segments;
  const Heads heads{batch, head, head / (params.heads / params.key_heads)};
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = lane_index();

  SUBQUAD_SHARED(shared);
  Tile tile(params, gradients, workspace, layout, heads, shared);
  const Sums sums(params, tile);

  const auto own_table = [&](void* tables, int64_t size) {
    acc* table = static_cast<acc*>(tables);
    if (table != nullptr) {
      table += work * size;
      for (int64_t i = thread; i < size; i += kWarps * kWarpSize) {
        table[i] = 0;
      }
    }
    return table;
  };
  const int64_t slots = window_slots(params.window);
  acc* bias = own_table(workspace.bias, params.window.block * slots);
  acc* relative = own_table(workspace.relative_key, slots * params.head_dim);
  acc* summary_relative = own_table(
      workspace.summary_relative_key,
      params.summary_relative_keys * params.head_dim);
  __syncthreads();

  const int64_t begin = segment * workspace.table_segment;
  const int64_t end =
      min_index(begin + workspace.table_segment, params.query_length);
  for (int64_t first = begin; first < end; first += kRows) {
    tile.load(first);
    tile.walk([&](auto& gradient,
                  const Columns& at,
                  const Seen(&seen)[2],
                  scalar_t* keys) {
      acc* grad_logits = reinterpret_cast<acc*>(keys); // [kRows, kStride]
      __syncthreads();
#pragma unroll
      for (int n = 0; n < Tile::kTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          grad_logits
              [tile.own[e / 2] * Sums::kStride + fragment_column(lane, n, e)] =
                  gradient.v[n][e];
        }
      }
      if (lane % 4 == 0) {
        tile.header.seen[tile.own[0]] = seen[0];
        tile.header.seen[tile.own[1]] = seen[1];
      }
      __syncthreads();
      if (at.summaries()) {
        if (summary_relative != nullptr) {
          sums.add_relative(summary_relative, grad_logits, at);
        }
        return;
      }
      if (bias != nullptr) {
        sums.add_bias(bias, grad_logits, at);
      }
      if (relative != nullptr) {
        sums.add_relative(relative, grad_logits, at);
      }
    });
    __syncthreads();
  }
}

template <typename scalar_t, typename Launcher>
int launch_backward_query(
    Launcher&& launch,
    const WindowAttentionParams& params,
    const WindowAttentionGradients& gradients,
    const BackwardWorkspace& workspace) {
  const auto bytes = [&](int rows) {
    return query_tile_bytes<scalar_t>(params, rows, false, 0);
  };
  return with_tile_shape<scalar_t>(params.head_dim, bytes, [&](auto shape) {
    using Shape = decltype(shape);
    BackwardLayout layout = backward_layout<scalar_t>(params, gradients);
    layout.tiles = ceil_divide(params.query_length, Shape::kRows);
    layout.chunks =
        static_cast<int>(ceil_divide(params.head_dim, Shape::kColumns));
    layout.one_buffer = bytes(Shape::kRows) > kSharedLimit;
    return launch_blocks(
        launch,
        window_attention_backward_query_kernel<
            scalar_t,
            Shape::kWarps,
            Shape::kColumns>,
        layout.tiles * layout.chunks * params.heads * params.batch,
        Shape::kWarps,
        query_tile_bytes<scalar_t>(params, Shape::kRows, layout.one_buffer, 0),
        params,
        gradients,
        workspace,
        layout);
  });
}

template <typename scalar_t, typename Launcher>
int launch_backward_tables(
    Launcher&& launch,
    const WindowAttentionParams& params,
    const WindowAttentionGradients& gradients,
    const BackwardWorkspace& workspace) {
  const auto room = [](int rows) {
    return static_cast<size_t>(rows * (rows + 1)) * sizeof(acc_t<scalar_t>);
  };
  const auto bytes = [&](int rows) {
    return query_tile_bytes<scalar_t>(params, rows, false, room(rows));
  };
  // No columns of a result: any shape with the right number of warps.
  return with_tile_shape<scalar_t>(0, bytes, [&](auto shape) {
    using Shape = decltype(shape);
    BackwardLayout layout = backward_layout<scalar_t>(params, gradients);
    layout.segments = workspace.table_segments;
    layout.one_buffer = bytes(Shape::kRows) > kSharedLimit;
    return launch_blocks(
        launch,
        window_attention_backward_tables_kernel<scalar_t, Shape::kWarps>,
        layout.segments * params.heads * params.batch,
        Shape::kWarps,
        query_tile_bytes<scalar_t>(
            params, Shape::kRows, layout.one_buffer, room(Shape::kRows)),
        params,
        gradients,
        workspace,
        layout);
  });
}

} // namespace subquad::cuda
