#pragma once

#include "ops/linear_attention/kernel_tile.cuh"

// Products of a chunk's tokens with each other and with a state, which the
// output and three gradients are (see kernel_backward.cuh). Rows of the result
// are the chunk's queries or its keys:
//
//   result = pairs(left right^T) third + past o left state
//
//   of        rows     left   right  third  columns
//   output    queries  phi_q  phi_k  V      of values
//   dV        keys     phi_k  phi_q  dO     of values
//   dphi_q    queries  dO     V      phi_k  features
//   dphi_k    keys     V      dO     phi_q  features
//
// A pair that is not seen is set to zero, never multiplied by it. A row of
// `third` with NaN or infinity is taken out of the product, since zero times
// NaN is NaN, and added to those who see it.
namespace subquad::cuda {

enum class Product { kOutput, kGradValue, kGradQuery, kGradKey };

// The states that the rows of a result meet: of chunks, or of whole rows.
struct StateSource {
  const void* kv;
  int64_t kv_stride;
  const void* k;
  int64_t k_stride;
  bool of_rows;
  bool vectors; // for stage_state
};

// Shared memory: tables, then left, right, third and state.
template <typename scalar_t>
constexpr size_t product_shared_bytes() {
  return ChunkTables<scalar_t>::bytes() +
      4 * kTileElements<scalar_t> * sizeof(scalar_t);
}

// A power of two that brings the largest number of a part of a state into the
// range of float16, whose sums of many tokens may lie beyond it; 1 for the
// other dtypes. All threads of the block.
template <typename scalar_t>
__device__ __forceinline__ acc_t<scalar_t> state_factor(
    const acc_t<scalar_t>* state, // [F, M]
    int64_t width,                // M
    const ColumnTile& features,
    const ColumnTile& columns,
    acc_t<scalar_t>* votes) {
  using acc = acc_t<scalar_t>;
  if constexpr (!std::is_same_v<scalar_t, __half>) {
    return acc(1);
  } else {
    acc most = 0;
    for (int i = static_cast<int>(threadIdx.x);
         i < features.count * columns.count;
         i += static_cast<int>(blockDim.x)) {
      const int64_t row = features.first + i / columns.count;
      most = larger(
          most, fabsf(state[row * width + columns.first + i % columns.count]));
    }
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
      most = larger(most, __shfl_xor_sync(kAllLanes, most, offset));
    }
    if (lane_index() == 0) {
      votes[threadIdx.x / kWarpSize] = most;
    }
    __syncthreads();
    for (int warp = 0; warp < kTileWarps<scalar_t>; ++warp) {
      most = larger(most, votes[warp]);
    }
    if (most == acc(0) || !is_finite(most)) {
      return acc(1);
    }
    // The largest becomes some 2^14 of at most 65504.
    const int exponent = ilogbf(most);
    return exp2f(static_cast<acc>(14 - (exponent < -100 ? -100 : exponent)));
  }
}

// A part of a state, rounded, into a tile. With `vectors` its rows are
// multiples of 16 bytes of the tile's elements.
template <typename scalar_t>
__device__ __forceinline__ void stage_state(
    scalar_t* tile,
    const acc_t<scalar_t>* state, // [F, M]
    int64_t width,                // M
    bool vectors,
    const ColumnTile& features,
    const ColumnTile& columns,
    acc_t<scalar_t> factor) {
  using acc = acc_t<scalar_t>;
  constexpr int kRows = kSide<scalar_t>;
  constexpr int kVector = kVectorWidth<scalar_t>;
  constexpr int kLoad = kVectorWidth<acc>;
  const int step = vectors ? kVector : 1;
  const int pieces = kRows / step;
#pragma unroll 2
  for (int i = static_cast<int>(threadIdx.x); i < kRows * pieces;
       i += static_cast<int>(blockDim.x)) {
    const int row = i / pieces;
    const int column = i % pieces * step;
    const bool inside = row < features.count && column < columns.count;
    const acc* source =
        state + (features.first + row) * width + columns.first + column;
    scalar_t* target = tile + row * kTileStride<scalar_t> + column;
    if (!vectors) {
      *target = from_acc<scalar_t>(inside ? *source * factor : acc(0));
      continue;
    }
    acc values[kVector] = {};
    if (inside) {
#pragma unroll
      for (int k = 0; k < kVector; k += kLoad) {
        acc part[kLoad];
        ld128(part, source + k);
#pragma unroll
        for (int l = 0; l < kLoad; ++l) {
          values[k + l] = part[l] * factor;
        }
      }
    }
    store(values, target);
  }
}

// Marks the rows of a tile that hold NaN or infinity; a barrier before and
// after.
template <typename scalar_t>
__device__ __forceinline__ void
mark_nonfinite_rows(const scalar_t* tile, int columns, int* marks) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  int found = 0;
  for (int row = 0; row < kWarpRows; ++row) {
    const scalar_t* line =
        tile + (warp * kWarpRows + row) * kTileStride<scalar_t>;
    bool finite = true;
    for (int column = lane_index(); column < columns; column += kWarpSize) {
      finite = finite && is_finite(to_acc(line[column]));
    }
    found |= __all_sync(kAllLanes, finite) ? 0 : 1 << row;
  }
  if (lane_index() == 0) {
    marks[warp] = found;
  }
}

// Grid: places of chunks x heads (of queries, or of keys) x tiles of the
// result's columns, on one axis, places fastest. Block: kTileWarps; each warp
// owns 16 rows. Barriers: after the tables; for each step of the depth one when
// its tiles are there and one before they are overwritten; around the marks of
// `third`. Key heads go through their query heads in order.
template <typename scalar_t, Product kProduct>
__global__ void __launch_bounds__(
    kTileWarps<scalar_t>* kWarpSize,
    Scalar<scalar_t>::kTensorCores ? 4 : 2) // what shared memory has room for
    linear_attention_product_kernel(
        LinearAttentionParams params,
        LinearAttentionGradients gradients,
        LinearAttentionLayout layout,
        StateSource source) {
  using acc = acc_t<scalar_t>;
  constexpr bool kOfQueries =
      kProduct == Product::kOutput || kProduct == Product::kGradQuery;
  constexpr bool kOfValues =
      kProduct == Product::kOutput || kProduct == Product::kGradValue;
  constexpr int kTiles = kSide<scalar_t> / 8;
  constexpr int kStride = kTileStride<scalar_t>;

  int64_t work = static_cast<int64_t>(blockIdx.x);
  const int64_t place = work % layout.places;
  work /= layout.places;
  const int64_t heads = kOfQueries ? params.heads : params.key_heads;
  const int64_t group = params.heads / params.key_heads;
  const int64_t own_head = work % heads;
  const int64_t key_head = kOfQueries ? own_head / group : own_head;
  const ColumnTile columns = column_tile<scalar_t>(
      work / heads, kOfValues ? params.value_dim : params.features);
  const Chunk chunk = chunk_at(layout.axis, place);
  if (chunk.count == 0) {
    return;
  }
  const int64_t batch = chunk.row.batch;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = lane_index();
  const int warp = thread / kWarpSize;
  const int own[2] = {
      warp * kWarpRows + fragment_row(lane, 0),
      warp * kWarpRows + fragment_row(lane, 2)}; // the lane's two rows

  SUBQUAD_SHARED(shared);
  const ChunkTables<scalar_t> tables(shared);
  scalar_t* left =
      reinterpret_cast<scalar_t*>(shared + ChunkTables<scalar_t>::bytes());
  scalar_t* right = left + kTileElements<scalar_t>;
  scalar_t* third = right + kTileElements<scalar_t>;
  scalar_t* past = third + kTileElements<scalar_t>;

  if constexpr (kOfQueries) {
    fill_query_tables(tables, params, layout, chunk, key_head);
  } else {
    fill_key_tables(tables, params, layout, chunk, key_head);
  }
  __syncthreads();

  const auto stage_queries = [&](scalar_t* tile, int64_t head, ColumnTile at) {
    stage_features(
        tile,
        layout.queries,
        batch,
        head,
        tables.tokens,
        tables.of_query,
        static_cast<const acc*>(nullptr),
        at);
  };
  const auto stage_keys = [&](scalar_t* tile, ColumnTile at) {
    stage_features(
        tile,
        layout.keys,
        batch,
        key_head,
        tables.tokens,
        tables.of_key,
        static_cast<const acc*>(nullptr),
        at);
  };
  const auto stage_values = [&](scalar_t* tile, ColumnTile at) {
    stage_vectors(
        tile,
        params.value,
        params.value_stride,
        layout.vectors_value,
        batch,
        key_head,
        tables.tokens,
        at);
  };
  const auto stage_grad_output =
      [&](scalar_t* tile, int64_t head, ColumnTile at) {
        stage_vectors(
            tile,
            gradients.grad_output,
            gradients.grad_output_stride,
            layout.vectors_grad_output,
            batch,
            head,
            tables.tokens,
            at);
      };

  // The state before the group of the chunk's queries, or behind its keys.
  const int64_t seen_place =
      kOfQueries ? place - chunk.index % layout.axis.rule.per : place;
  const int64_t state_lane =
      (source.of_rows ? chunk.row.row : seen_place) * params.key_heads +
      key_head;
  const acc* state_kv =
      static_cast<const acc*>(source.kv) + state_lane * source.kv_stride;
  const acc* state_k =
      static_cast<const acc*>(source.k) + state_lane * source.k_stride;
  const bool any_past = !kOfQueries || source.of_rows ||
      params.state_kv != nullptr || chunk.index >= layout.axis.rule.per;
  const int64_t depth = kOfValues ? params.features : params.value_dim;
  const ColumnTile whole{0, static_cast<int>(depth)};
  acc factor = 1;
  if (any_past) {
    factor = state_factor<scalar_t>(
        state_kv,
        params.value_dim,
        kOfValues ? whole : columns,
        kOfValues ? columns : whole,
        tables.votes);
  }

  Fragment<acc, kTiles> result;
  result.zero();
  acc denominator[2] = {0, 0}; // the lane's part
  const int64_t members = !kOfQueries && params.causal ? group : 1;
  for (int64_t member = 0; member < members; ++member) {
    const int64_t head = kOfQueries ? own_head : key_head * group + member;
    const bool with_past = any_past && member == 0;
    __syncthreads();
    if constexpr (kProduct != Product::kOutput) {
      const int64_t token =
          thread < kSide<scalar_t> ? tables.tokens[thread] : -1;
      if (token >= 0 && (kOfQueries || params.causal)) {
        const acc* terms =
            static_cast<const acc*>(layout.workspace.query_terms) +
            2 * ((batch * params.heads + head) * params.query_length + token);
        tables.inverse[thread] = terms[0];
        tables.delta[thread] = terms[1];
      }
    }
    if (kOfQueries || params.causal) {
      fill_softmax_terms<scalar_t>(
          tables.of_query, layout.queries, batch, head, tables.tokens);
    }
    if (!kOfQueries || params.causal) {
      fill_softmax_terms<scalar_t>(
          tables.of_key, layout.keys, batch, key_head, tables.tokens);
    }
    __syncthreads();
    if (params.causal) {
      if constexpr (kProduct == Product::kOutput) {
        stage_values(third, columns);
      } else if constexpr (kProduct == Product::kGradValue) {
        stage_grad_output(third, head, columns);
      } else if constexpr (kProduct == Product::kGradQuery) {
        stage_keys(third, columns);
      } else {
        stage_queries(third, head, columns);
      }
      cp_async_commit();
    }

    Fragment<acc, kTiles> pairs;
    pairs.zero();
    const int steps = kOfValues ? layout.feature_tiles : layout.value_tiles;
    for (int step = 0; step < steps; ++step) {
      const ColumnTile at = column_tile<scalar_t>(step, depth);
      if (step > 0) {
        __syncthreads();
      }
      if constexpr (kProduct == Product::kOutput) {
        stage_queries(left, head, at);
        if (params.causal) {
          stage_keys(right, at);
        }
      } else if constexpr (kProduct == Product::kGradValue) {
        stage_keys(left, at);
        if (params.causal) {
          stage_queries(right, head, at);
        }
      } else if constexpr (kProduct == Product::kGradQuery) {
        stage_grad_output(left, head, at);
        if (params.causal) {
          stage_values(right, at);
        }
      } else {
        stage_values(left, at);
        if (params.causal) {
          stage_grad_output(right, head, at);
        }
      }
      cp_async_commit();
      if (with_past) {
        stage_state(
            past,
            state_kv,
            params.value_dim,
            source.vectors,
            kOfValues ? at : columns,
            kOfValues ? columns : at,
            factor);
      }
      cp_async_wait<0>();
      __syncthreads();
      const scalar_t* rows = left + warp * kWarpRows * kStride;
      if (params.causal) {
        multiply_transposed<scalar_t, kTiles>(
            pairs, rows, kStride, right, kStride, padded_width(at.count));
      }
      if (with_past) {
        if constexpr (kOfValues) {
          multiply_tiles<false>(
              result,
              rows,
              kStride,
              past,
              kStride,
              padded_width(at.count),
              columns.count);
        } else {
          multiply_transposed<scalar_t, kTiles>(
              result, rows, kStride, past, kStride, padded_width(at.count));
        }
        if constexpr (kProduct == Product::kOutput) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            for (int f = lane % 4; f < at.count; f += 4) {
              denominator[half] +=
                  to_acc(left[own[half] * kStride + f]) * state_k[at.first + f];
            }
          }
        }
      }
    }

    if (with_past) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const acc weight = tables.past[own[half]];
        const bool sees = weight != acc(0);
        acc scale = weight / factor;
        acc shift = 0; // of a column, times state_k
        if constexpr (kOfQueries) {
          scale *= static_cast<acc>(params.scale);
        }
        if constexpr (kProduct == Product::kGradQuery) {
          const acc inverse = sees ? tables.inverse[own[half]] : acc(0);
          shift = sees ? weight * static_cast<acc>(params.scale) * inverse *
                  tables.delta[own[half]]
                       : acc(0);
          scale *= inverse;
        } else if constexpr (kProduct == Product::kGradKey) {
          shift = weight;
        }
        if constexpr (kProduct == Product::kOutput) {
          denominator[half] = sees
              ? denominator[half] * weight * static_cast<acc>(params.scale)
              : acc(0);
        }
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            acc& value = result.v[n][e];
            value = sees ? value * scale : acc(0);
            if constexpr (!kOfValues) {
              const int column = fragment_column(lane, n, e);
              if (sees && column < columns.count) {
                value += shift * state_k[columns.first + column];
              }
            }
          }
        }
      }
    }
    if (!params.causal) {
      continue;
    }

    for_each_tile(pairs, [&](int n, acc(&v)[4]) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = fragment_column(lane, n, e);
        const int query = kOfQueries ? own[e / 2] : column;
        const int key = kOfQueries ? column : own[e / 2];
        acc value = 0;
        if (key < tables.limits[query]) {
          acc weight = static_cast<acc>(params.scale);
          if (params.key_log_scale != nullptr) {
            weight *= decay(tables.levels[key], tables.levels[query]);
          }
          value = v[e];
          if constexpr (!kOfValues) {
            value += tables.delta[query];
          }
          if constexpr (kProduct != Product::kOutput) {
            weight *= tables.inverse[query];
          }
          value *= weight;
        }
        v[e] = value;
        if constexpr (kProduct == Product::kOutput) {
          denominator[e / 2] += value;
        }
      }
    });

    mark_nonfinite_rows(third, columns.count, tables.marks);
    __syncthreads();
    for (int part = 0; part < kTileWarps<scalar_t>; ++part) {
      const int marks = tables.marks[part];
      for (int bit = 0; marks >> bit != 0; ++bit) {
        if ((marks >> bit & 1) == 0) {
          continue;
        }
        const int row = part * kWarpRows + bit;
        if (thread < columns.count) {
          tables.line[thread] = third[row * kStride + thread];
          third[row * kStride + thread] = from_acc<scalar_t>(acc(0));
        }
        __syncthreads();
        const bool sees[2] = {
            kOfQueries ? row < tables.limits[own[0]]
                       : own[0] < tables.limits[row],
            kOfQueries ? row < tables.limits[own[1]]
                       : own[1] < tables.limits[row]};
        multiply_row<scalar_t, kTiles, kTiles>(
            result, pairs, row, tables.line, columns.count, sees);
        __syncthreads();
      }
    }
    multiply<scalar_t, kTiles, kTiles>(
        result, pairs, third, kStride, columns.count);
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t token = tables.tokens[own[half]];
    acc inverse = 1;
    if constexpr (kProduct == Product::kOutput) {
      const acc sum = row_sum(denominator[half]);
      if (params.normalize) {
        const acc floor = static_cast<acc>(params.floor);
        const acc bounded = sum < floor ? floor : sum;
        inverse = bounded == acc(0) ? acc(0) : acc(1) / bounded;
      }
      if (token >= 0 && columns.first == 0 && lane % 4 == 0) {
        static_cast<acc*>(params.denominator)
            [(batch * params.heads + own_head) * params.query_length + token] =
                sum;
      }
    }
    if (token < 0) {
      continue;
    }
    const auto store_row = [&](auto* target) {
      using target_t = std::remove_pointer_t<decltype(target)>;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          const int column = fragment_column(lane, n, e);
          if (column < columns.count) {
            target[columns.first + column] =
                from_acc<target_t>(result.v[n][e] * inverse);
          }
        }
      }
    };
    if constexpr (kProduct == Product::kOutput) {
      store_row(const_cast<scalar_t*>(vector_row<scalar_t>(
          params.output, params.output_stride, batch, own_head, token)));
    } else if constexpr (kProduct == Product::kGradValue) {
      store_row(const_cast<scalar_t*>(vector_row<scalar_t>(
          gradients.grad_value,
          gradients.grad_value_stride,
          batch,
          own_head,
          token)));
    } else if constexpr (kProduct == Product::kGradQuery) {
      store_row(
          static_cast<acc*>(layout.workspace.query_features) +
          ((batch * params.heads + own_head) * params.query_length + token) *
              params.features);
    } else {
      store_row(
          static_cast<acc*>(layout.workspace.key_features) +
          ((batch * params.key_heads + own_head) * params.key_length + token) *
              params.features);
    }
  }
}

template <typename scalar_t, Product kProduct, typename Launcher>
int launch_product(
    Launcher&& launch,
    const LinearAttentionParams& params,
    const LinearAttentionGradients& gradients,
    const LinearAttentionLayout& layout,
    const StateSource& source) {
  constexpr bool kOfQueries =
      kProduct == Product::kOutput || kProduct == Product::kGradQuery;
  constexpr bool kOfValues =
      kProduct == Product::kOutput || kProduct == Product::kGradValue;
  return launch_linear_attention(
      launch,
      linear_attention_product_kernel<scalar_t, kProduct>,
      layout.places * (kOfQueries ? params.heads : params.key_heads) *
          (kOfValues ? layout.value_tiles : layout.feature_tiles),
      kTileWarps<scalar_t>,
      product_shared_bytes<scalar_t>(),
      params,
      gradients,
      layout,
      source);
}

// Whether stage_state may use vectors.
template <typename scalar_t>
bool takes_state_vectors(const void* kv, int64_t stride, int64_t width) {
  constexpr int64_t kVector = kVectorWidth<scalar_t>;
  return reinterpret_cast<uintptr_t>(kv) % 16 == 0 && stride % kVector == 0 &&
      width % kVector == 0;
}

// One state behind the other, [F, M] and [F].
template <typename scalar_t>
StateSource workspace_states(
    const LinearAttentionParams& params,
    const void* states,
    bool of_rows) {
  const int64_t size = state_elements(params);
  return {
      states,
      size,
      static_cast<const acc_t<scalar_t>*>(states) +
          params.features * params.value_dim,
      size,
      of_rows,
      takes_state_vectors<scalar_t>(states, size, params.value_dim)};
}

// What queries see of the past: when causal the states in the workspace, else
// the new state, which has all keys.
template <typename scalar_t>
StateSource query_states(
    const LinearAttentionParams& params,
    const LinearAttentionWorkspace& workspace) {
  if (params.causal) {
    return workspace_states<scalar_t>(params, workspace.states, false);
  }
  const int64_t size = params.features * params.value_dim;
  return {
      params.new_state_kv,
      size,
      params.new_state_k,
      params.features,
      true,
      takes_state_vectors<scalar_t>(
          params.new_state_kv, size, params.value_dim)};
}

} // namespace subquad::cuda
