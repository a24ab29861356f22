#pragma once

#include "ops/random_features/backward_workspace.h"
#include "ops/random_features/kernel_scan.cuh"

// With g the gradient of the features f (without eps):
//   positive        dp = g f,                      dn = dm = -sum_r g f
//   trigonometric   dp = a (g_sin cos p - g_cos sin p), a = R^-1/2 exp(n - m),
//                   dn = sum g f,                  dm = -dn
//   sincos          as trigonometric with a = R^-1/2, without dn
//   relu            dp = R^-1/2 g where p > 0
// plus, where m is attained, a share of the sum of the dm that depend on it;
// then dx = scale dp W + scale^2 dn x and dW = scale dp^T x.
namespace subquad::random_features {

// dp of one projection of one token; adds g f to `sum`. g_cos is 0 without
// cosines.
template <typename acc>
__device__ __forceinline__ acc gradient_of(
    RandomFeatures kind,
    acc root,
    acc level,
    acc p,
    acc g,
    acc g_cos,
    acc& sum) {
  if (has_sines(kind)) {
    acc sine, cosine;
    sine_cosine(p, sine, cosine);
    sum += level * (g * sine + g_cos * cosine);
    return level * (g * cosine - g_cos * sine);
  }
  if (kind == RandomFeatures::kPositive) {
    const acc product = g * (root * exponential(p - level));
    sum += product;
    return product;
  }
  return p <= acc(0) ? acc(0) : root * g;
}

template <typename T>
__device__ const T* gradient_at(
    const RandomFeaturesGradients& gradients,
    const Head& at,
    int64_t token) {
  return head_of(
             static_cast<const T*>(gradients.grad_output),
             gradients.grad_output_stride,
             at.tokens.batch,
             at.head) +
      token * gradients.grad_output_stride.row;
}

// Zero beyond the projections that exist and where there is no gradient.
template <typename T>
__device__ __forceinline__ acc_t<T>
gradient_of_feature(const T* gradients, int64_t projection, int64_t R) {
  return gradients != nullptr && projection < R ? to_acc(gradients[projection])
                                                : acc_t<T>(0);
}

// The two tokens of a lane, rows g and g + 8 of its warp's.
template <typename T>
struct OwnTokens {
  using acc = acc_t<T>;
  int64_t token[2]; // -1: none
  const T* grad[2]; // of the token's features, or null
  acc n[2];
  acc m[2];
  acc level[2];

  __device__ OwnTokens(
      const RandomFeaturesParams& params,
      const RandomFeaturesGradients& gradients,
      const Head& at,
      const Shared<T>& shared,
      int64_t tile) {
    const int lane = lane_index();
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    const acc factor = root<acc>(params);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int own = fragment_row(lane, 2 * half);
      const int64_t i = tile + warp * kWarpRows + own;
      token[half] = i < at.tokens.span.length ? at.tokens.token(i) : -1;
      n[half] = half_square(params, shared.own() + own * shared.stride);
      const bool valid = token[half] >= 0;
      m[half] = valid ? static_cast<const acc*>(
                            params.log_scale)[at.line(params, token[half])]
                      : acc(0);
      level[half] = level_of(params, factor, n[half], m[half]);
      grad[half] = valid && gradients.grad_output != nullptr
          ? gradient_at<T>(gradients, at, token[half])
          : nullptr;
    }
  }
};

// dp of the own tokens for a chunk of projections, in place of p.
template <typename T>
__device__ __forceinline__ void to_gradients(
    Fragment<acc_t<T>, RowShape<T>::kTiles>& p,
    const RandomFeaturesParams& params,
    const OwnTokens<T>& own,
    int64_t first,
    acc_t<T> (&sum)[2]) {
  using acc = acc_t<T>;
  constexpr int kTiles = RowShape<T>::kTiles;
  const int lane = lane_index();
  const int64_t R = params.projections;
  const acc factor = root<acc>(params);
#pragma unroll
  for (int k = 0; k < kTiles; ++k) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int64_t column = first + fragment_column(lane, k, e);
      const T* grad = own.grad[e / 2];
      const acc g = gradient_of_feature(grad, column, R);
      const acc g_cos = has_sines(params.kind) && grad != nullptr
          ? gradient_of_feature(grad + R, column, R)
          : acc(0);
      // Without a gradient p counts for nothing, whatever it is.
      p.v[k][e] = grad != nullptr && column < R ? gradient_of(
                                                      params.kind,
                                                      factor,
                                                      own.level[e / 2],
                                                      p.v[k][e],
                                                      g,
                                                      g_cos,
                                                      sum[e / 2])
                                                : acc(0);
    }
  }
}

// dm of every token, and how many of its features (its norm) attain m. Grid:
// (rows * heads, tiles of tokens); tiles and barriers as in forward.
template <typename T>
__global__ void __launch_bounds__(RowShape<T>::kThreads, 1)
    random_features_backward_scale_kernel(
        RandomFeaturesParams params,
        RandomFeaturesGradients gradients,
        Vectors vectors,
        acc_t<T>* grad_m, // [B, H, L]
        int* ties) {      // [B, H, L]
  using Shape = RowShape<T>;
  using acc = acc_t<T>;
  constexpr int kTiles = Shape::kTiles;
  SUBQUAD_SHARED(memory);
  const Shared<T> shared(memory, params.head_dim);
  const int lane = lane_index();
  const Head at(params, blockIdx.x / params.heads, blockIdx.x % params.heads);
  const int64_t R = params.projections;
  for (int64_t tile = int64_t{blockIdx.y} * Shape::kRows;
       tile < at.tokens.span.length;
       tile += int64_t{gridDim.y} * Shape::kRows) {
    __syncthreads();
    stage_tokens(
        shared.rows,
        shared.stride,
        Shape::kRows,
        params,
        at,
        tile,
        vectors.tokens);
    wait_for_tiles();
    const OwnTokens<T> own(params, gradients, at, shared, tile);
    acc sum[2] = {0, 0};
    int count[2] = {0, 0};
    for (int64_t first = 0; first < R; first += Shape::kOthers) {
      __syncthreads();
      stage_projections(
          shared.others,
          shared.stride,
          Shape::kOthers,
          params,
          at.projection_head,
          first,
          vectors.projections);
      wait_for_tiles();
      Fragment<acc, kTiles> p;
      project(p, params, shared);
      if (params.kind == RandomFeatures::kPositive) {
#pragma unroll
        for (int k = 0; k < kTiles; ++k) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const bool inside = first + fragment_column(lane, k, e) < R;
            // NaN belongs to the token where it appears.
            count[e / 2] += inside && !(p.v[k][e] < own.m[e / 2]) ? 1 : 0;
          }
        }
      }
      to_gradients<T>(p, params, own, first, sum);
    }
    for (int half = 0; half < 2; ++half) {
      sum[half] = row_sum(sum[half]);
      count[half] = row_sum(count[half]);
      if (own.token[half] < 0 || lane % 4 != 0) {
        continue;
      }
      if (params.kind == RandomFeatures::kTrigonometric) {
        count[half] = !(own.n[half] < own.m[half]) ? 1 : 0;
      }
      const int64_t line = at.line(params, own.token[half]);
      const acc direct = gradients.grad_log_scale == nullptr
          ? acc(0)
          : static_cast<const acc*>(gradients.grad_log_scale)[line];
      grad_m[line] = direct - sum[half];
      ties[line] = count[half];
    }
  }
}

// Grid: (rows * heads, tiles of tokens, chunks of kColumns of D); tiles and
// barriers as in forward. `share` is null without a gradient through m.
template <typename T>
__global__ void __launch_bounds__(RowShape<T>::kThreads, 1)
    random_features_backward_input_kernel(
        RandomFeaturesParams params,
        RandomFeaturesGradients gradients,
        Vectors vectors,
        const acc_t<T>* share) { // [B, H, L]
  using Shape = RowShape<T>;
  using acc = acc_t<T>;
  constexpr int kTiles = Shape::kTiles;
  SUBQUAD_SHARED(memory);
  const Shared<T> shared(memory, params.head_dim);
  const int lane = lane_index();
  const Head at(params, blockIdx.x / params.heads, blockIdx.x % params.heads);
  const int64_t R = params.projections;
  const int first_column = static_cast<int>(blockIdx.z) * Shape::kColumns;
  const int columns = static_cast<int>(
      min_index(params.head_dim - first_column, Shape::kColumns));
  T* result = head_of(
      static_cast<T*>(gradients.grad_input),
      gradients.grad_input_stride,
      at.tokens.batch,
      at.head);
  for (int64_t tile = int64_t{blockIdx.y} * Shape::kRows;
       tile < at.tokens.span.length;
       tile += int64_t{gridDim.y} * Shape::kRows) {
    __syncthreads();
    stage_tokens(
        shared.rows,
        shared.stride,
        Shape::kRows,
        params,
        at,
        tile,
        vectors.tokens);
    wait_for_tiles();
    const OwnTokens<T> own(params, gradients, at, shared, tile);
    acc each[2] = {0, 0};
    for (int half = 0; half < 2; ++half) {
      if (share != nullptr && own.token[half] >= 0) {
        each[half] = share[at.line(params, own.token[half])];
      }
    }
    const bool shares_p =
        share != nullptr && params.kind == RandomFeatures::kPositive;
    acc sum[2] = {0, 0};
    Fragment<acc, Shape::kColumns / 8> grad;
    grad.zero();
    for (int64_t first = 0; first < R; first += Shape::kOthers) {
      __syncthreads();
      stage_projections(
          shared.others,
          shared.stride,
          Shape::kOthers,
          params,
          at.projection_head,
          first,
          vectors.projections);
      wait_for_tiles();
      Fragment<acc, kTiles> p;
      project(p, params, shared);
      unsigned attained = 0; // a bit per element
      if (shares_p) {
#pragma unroll
        for (int k = 0; k < kTiles; ++k) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const bool inside = first + fragment_column(lane, k, e) < R;
            const bool attains = inside && !(p.v[k][e] < own.m[e / 2]);
            attained |= (attains ? 1u : 0u) << (4 * k + e);
          }
        }
      }
      to_gradients<T>(p, params, own, first, sum);
      if (shares_p) {
#pragma unroll
        for (int k = 0; k < kTiles; ++k) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            if ((attained >> (4 * k + e) & 1u) != 0) {
              p.v[k][e] += each[e / 2];
            }
          }
        }
      }
      multiply<T, kTiles, Shape::kColumns / 8>(
          grad, p, shared.others + first_column, shared.stride, columns);
    }
    const acc scale = static_cast<acc>(params.scale);
    for (int half = 0; half < 2; ++half) {
      acc grad_n = row_sum(sum[half]);
      if (params.kind == RandomFeatures::kPositive) {
        grad_n = -grad_n;
      } else if (params.kind == RandomFeatures::kTrigonometric) {
        if (share != nullptr && !(own.n[half] < own.m[half])) {
          grad_n += each[half];
        }
      } else {
        grad_n = 0;
      }
      if (own.token[half] < 0) {
        continue;
      }
      T* target = result + own.token[half] * gradients.grad_input_stride.row +
          first_column;
      const T* token = shared.own() +
          fragment_row(lane, 2 * half) * shared.stride + first_column;
#pragma unroll
      for (int k = 0; k < Shape::kColumns / 8; ++k) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          const int column = fragment_column(lane, k, e);
          if (column < columns) {
            acc value = scale * grad.v[k][e];
            if (is_exponential(params.kind)) {
              value += scale * scale * grad_n * to_acc(token[column]);
            }
            target[column] = from_acc<T>(value);
          }
        }
      }
    }
  }
}

// What the projection's gradient needs of the staged tokens.
template <typename T>
struct TokenTable {
  using acc = acc_t<T>;
  static constexpr int kTokens = RowShape<T>::kOthers;
  int64_t* token; // -1: none
  acc* m;
  acc* level;
  acc* each; // share

  __device__ explicit TokenTable(unsigned char* memory)
      : token(reinterpret_cast<int64_t*>(memory)),
        m(reinterpret_cast<acc*>(token + kTokens)),
        level(m + kTokens),
        each(level + kTokens) {}

  static size_t bytes() {
    return kTokens * (sizeof(int64_t) + 3 * sizeof(acc));
  }

  // Four lanes for each token, as half_square wants; whole warps take part.
  __device__ void fill(
      const RandomFeaturesParams& params,
      const Head& at,
      const Shared<T>& shared,
      int64_t tile,
      const acc* share) const {
    const acc factor = root<acc>(params);
    for (int r = static_cast<int>(threadIdx.x) / 4; r < kTokens;
         r += RowShape<T>::kThreads / 4) {
      const int64_t i = tile + r;
      const acc n = half_square(params, shared.others + r * shared.stride);
      if (lane_index() % 4 != 0) {
        continue;
      }
      const bool valid = i < at.tokens.span.length;
      const int64_t place = valid ? at.tokens.token(i) : -1;
      const int64_t line = valid ? at.line(params, place) : 0;
      const acc own =
          valid ? static_cast<const acc*>(params.log_scale)[line] : acc(0);
      token[r] = place;
      m[r] = own;
      level[r] = level_of(params, factor, n, own);
      each[r] = valid && share != nullptr ? share[line] : acc(0);
    }
  }
};

// Grid: (projection heads * segments, tiles of projections, chunks of kColumns
// of D). A warp owns 16 projections; tiles of tokens pass through the other
// tile, those of the segment from all rows and heads that share the
// projection. p is the same as in the other kernels: a product of two numbers
// and the order of the sum do not depend on which of them is the row.
template <typename T>
__global__ void __launch_bounds__(RowShape<T>::kThreads, 1)
    random_features_backward_projection_kernel(
        RandomFeaturesParams params,
        RandomFeaturesGradients gradients,
        Vectors vectors,
        const acc_t<T>* share, // [B, H, L]
        int64_t segments,
        acc_t<T>* partial) { // [segments, Hp, R, D]
  using Shape = RowShape<T>;
  using acc = acc_t<T>;
  constexpr int kTiles = Shape::kTiles;
  SUBQUAD_SHARED(memory);
  const Shared<T> shared(memory, params.head_dim);
  const TokenTable<T> table(shared.end());
  const int lane = lane_index();
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t projection_head = blockIdx.x / segments;
  const int64_t segment = blockIdx.x % segments;
  const int64_t group = params.heads / params.projection_heads;
  const int64_t R = params.projections;
  const int64_t D = params.head_dim;
  const int first_column = static_cast<int>(blockIdx.z) * Shape::kColumns;
  const int columns =
      static_cast<int>(min_index(D - first_column, Shape::kColumns));
  const acc factor = root<acc>(params);
  const acc scale = static_cast<acc>(params.scale);
  const bool shares_p =
      share != nullptr && params.kind == RandomFeatures::kPositive;
  acc* result =
      partial + (segment * params.projection_heads + projection_head) * R * D;

  for (int64_t first = int64_t{blockIdx.y} * Shape::kRows; first < R;
       first += int64_t{gridDim.y} * Shape::kRows) {
    __syncthreads();
    stage_projections(
        shared.rows,
        shared.stride,
        Shape::kRows,
        params,
        projection_head,
        first,
        vectors.projections);
    int64_t projection[2];
    for (int half = 0; half < 2; ++half) {
      projection[half] =
          first + warp * kWarpRows + fragment_row(lane, 2 * half);
    }
    Fragment<acc, Shape::kColumns / 8> grad;
    grad.zero();
    int64_t before = 0; // tiles of the rows and heads so far
    for (int64_t n = 0; n < params.rows * group; ++n) {
      const Head at(params, n / group, projection_head * group + n % group);
      const int64_t tiles =
          ceil_divide(at.tokens.span.length, int64_t{Shape::kOthers});
      const int64_t skipped =
          (segment + segments - before % segments) % segments;
      before += tiles;
      for (int64_t t = skipped; t < tiles; t += segments) {
        __syncthreads();
        stage_tokens(
            shared.others,
            shared.stride,
            Shape::kOthers,
            params,
            at,
            t * Shape::kOthers,
            vectors.tokens);
        wait_for_tiles();
        table.fill(params, at, shared, t * Shape::kOthers, share);
        Fragment<acc, kTiles> p; // projections x tokens
        project(p, params, shared);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < kTiles; ++k) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int column = fragment_column(lane, k, e);
            const int64_t r = projection[e / 2];
            const int64_t token = table.token[column];
            acc value = 0;
            if (token >= 0 && r < R) {
              const acc x = p.v[k][e];
              if (gradients.grad_output != nullptr) {
                const T* grad_output = gradient_at<T>(gradients, at, token);
                acc unused = 0;
                value = gradient_of(
                    params.kind,
                    factor,
                    table.level[column],
                    x,
                    to_acc(grad_output[r]),
                    has_sines(params.kind) ? to_acc(grad_output[R + r])
                                           : acc(0),
                    unused);
              }
              if (shares_p && !(x < table.m[column])) {
                value += table.each[column];
              }
            }
            p.v[k][e] = value;
          }
        }
        multiply<T, kTiles, Shape::kColumns / 8>(
            grad, p, shared.others + first_column, shared.stride, columns);
      }
    }
    cp_async_wait<0>();
    for (int half = 0; half < 2; ++half) {
      if (projection[half] >= R) {
        continue;
      }
#pragma unroll
      for (int k = 0; k < Shape::kColumns / 8; ++k) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          const int column = fragment_column(lane, k, e);
          if (column < columns) {
            result[projection[half] * D + first_column + column] =
                scale * grad.v[k][e];
          }
        }
      }
    }
  }
}

constexpr int kFoldThreads = 256;

// Sums the segments' parts in their order. Grid: elements.
template <typename T>
__global__ void __launch_bounds__(kFoldThreads)
    random_features_backward_fold_kernel(
        const acc_t<T>* partial, // [segments, elements]
        int64_t segments,
        int64_t elements,
        T* result) {
  for (int64_t n = int64_t{blockIdx.x} * kFoldThreads + threadIdx.x;
       n < elements;
       n += int64_t{gridDim.x} * kFoldThreads) {
    acc_t<T> sum = 0;
    for (int64_t segment = 0; segment < segments; ++segment) {
      sum += partial[segment * elements + n];
    }
    result[n] = from_acc<T>(sum);
  }
}

} // namespace subquad::random_features

namespace subquad {

// D <= 256, which the glue checks. What lies outside rows is not written, nor
// grad_initial_log_scale without a gradient through m.
template <typename Launcher>
int launch_random_features_backward(
    const Launcher& launch,
    const RandomFeaturesParams& params,
    const RandomFeaturesGradients& gradients,
    void* memory,
    ScalarKind dtype) {
  using namespace random_features;
  return dispatch_scalar(dtype, [&]<typename T>() {
    using Shape = RowShape<T>;
    using acc = acc_t<T>;
    const BackwardWorkspace workspace =
        backward_workspace(params, gradients, sizeof(acc), memory);
    auto* share = static_cast<acc*>(workspace.share);
    const int64_t heads = params.rows * params.heads;
    const int64_t tiles = ceil_divide(expected_length(params), Shape::kRows);
    const int64_t chunks = ceil_divide(params.head_dim, Shape::kColumns);
    const Vectors vectors = vectors_of<T>(params);
    const size_t bytes = Shared<T>::bytes(params.head_dim);
    int error = 0;
    const auto run = [&](auto kernel,
                         dim3 grid,
                         int threads,
                         size_t shared_bytes,
                         auto... arguments) {
      if (error == 0) {
        error = launch(kernel, grid, dim3(threads), shared_bytes, arguments...);
      }
    };
    if (has_scale_gradient(params) && heads > 0) {
      run(random_features_backward_scale_kernel<T>,
          row_grid(heads, tiles),
          Shape::kThreads,
          bytes,
          params,
          gradients,
          vectors,
          share,
          workspace.ties);
      run(random_features_backward_maximum_kernel<acc>,
          dim3(grid_size(heads)),
          kScanThreads,
          kScanWarps * sizeof(Run<acc>),
          params,
          share,
          workspace.ties,
          static_cast<acc*>(gradients.grad_initial_log_scale));
    }
    if (gradients.grad_input != nullptr && heads > 0) {
      run(random_features_backward_input_kernel<T>,
          row_grid(heads, tiles, chunks),
          Shape::kThreads,
          bytes,
          params,
          gradients,
          vectors,
          share);
    }
    if (gradients.grad_projection != nullptr) {
      const int64_t elements =
          params.projection_heads * params.projections * params.head_dim;
      auto* partial = static_cast<acc*>(workspace.projection);
      run(random_features_backward_projection_kernel<T>,
          row_grid(
              params.projection_heads * workspace.segments,
              ceil_divide(params.projections, Shape::kRows),
              chunks),
          Shape::kThreads,
          bytes + TokenTable<T>::bytes(),
          params,
          gradients,
          vectors,
          share,
          workspace.segments,
          partial);
      run(random_features_backward_fold_kernel<T>,
          dim3(grid_size(ceil_divide(elements, kFoldThreads))),
          kFoldThreads,
          size_t{0},
          partial,
          workspace.segments,
          elements,
          static_cast<T*>(gradients.grad_projection));
    }
    return error;
  });
}

} // namespace subquad
