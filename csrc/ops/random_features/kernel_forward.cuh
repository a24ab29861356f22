#pragma once

#include "ops/random_features/kernel_scan.cuh"

namespace subquad::random_features {

// What a launch does of it: the maximum of every token alone into log_scale,
// the features with the log_scale that is there, or both.
struct ForwardPass {
  bool maximum;
  bool features;
};

// Grid: (rows * heads, tiles of tokens). A warp owns 16 tokens; the projections
// pass in chunks through the other tile. Barriers order the copies before their
// readers and the readers before the next copies.
template <typename T>
__global__ void __launch_bounds__(RowShape<T>::kThreads, 1)
    random_features_forward_kernel(
        RandomFeaturesParams params,
        ForwardPass pass,
        Vectors vectors) {
  using Shape = RowShape<T>;
  using acc = acc_t<T>;
  constexpr int kTiles = Shape::kTiles;
  SUBQUAD_SHARED(memory);
  const Shared<T> shared(memory, params.head_dim);
  const int lane = lane_index();
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const Head at(params, blockIdx.x / params.heads, blockIdx.x % params.heads);
  const int64_t R = params.projections;
  const acc factor = root<acc>(params);
  const acc eps = static_cast<acc>(params.eps);
  T* output = head_of(
      static_cast<T*>(params.output),
      params.output_stride,
      at.tokens.batch,
      at.head);

  Fragment<acc, kTiles> p;
  const auto project_chunk = [&](int64_t first) {
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
    project(p, params, shared);
  };

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
    acc n[2];
    acc m[2];
    int64_t tokens[2]; // -1: none
    for (int half = 0; half < 2; ++half) {
      const int own = fragment_row(lane, 2 * half);
      const int64_t i = tile + warp * kWarpRows + own;
      tokens[half] = i < at.tokens.span.length ? at.tokens.token(i) : -1;
      n[half] = half_square(params, shared.own() + own * shared.stride);
      m[half] = is_stabilized(params) && !pass.maximum && tokens[half] >= 0
          ? static_cast<const acc*>(
                params.log_scale)[at.line(params, tokens[half])]
          : acc(0);
    }

    if (pass.maximum) {
      m[0] = n[0];
      m[1] = n[1];
      if (params.kind == RandomFeatures::kPositive) {
        m[0] = m[1] = no_maximum<acc>();
        for (int64_t first = 0; first < R; first += Shape::kOthers) {
          project_chunk(first);
#pragma unroll
          for (int k = 0; k < kTiles; ++k) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              if (first + fragment_column(lane, k, e) < R) {
                m[e / 2] = larger_or_nan(m[e / 2], p.v[k][e]);
              }
            }
          }
        }
      }
      for (int half = 0; half < 2; ++half) {
        for (int other = 1; other < 4; other *= 2) {
          m[half] = larger_or_nan(
              m[half], __shfl_xor_sync(kAllLanes, m[half], other));
        }
        if (params.stabilizer == Stabilizer::kToken &&
            params.initial_log_scale != nullptr) {
          m[half] = larger_or_nan(
              m[half],
              static_cast<const acc*>(params.initial_log_scale)[blockIdx.x]);
        }
      }
    }
    for (int half = 0; half < 2; ++half) {
      if ((pass.maximum || !is_stabilized(params)) && tokens[half] >= 0 &&
          lane % 4 == 0) {
        static_cast<acc*>(params.log_scale)[at.line(params, tokens[half])] =
            m[half];
      }
    }
    if (!pass.features) {
      continue;
    }

    const acc level[2] = {
        level_of(params, factor, n[0], m[0]),
        level_of(params, factor, n[1], m[1])};
    for (int64_t first = 0; first < R; first += Shape::kOthers) {
      // A single chunk is still there.
      if (!pass.maximum || params.kind != RandomFeatures::kPositive ||
          R > Shape::kOthers) {
        project_chunk(first);
      }
#pragma unroll
      for (int k = 0; k < kTiles; ++k) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int64_t column = first + fragment_column(lane, k, e);
          if (column >= R || tokens[e / 2] < 0) {
            continue;
          }
          T* target =
              output + tokens[e / 2] * params.output_stride.row + column;
          const acc x = p.v[k][e];
          if (has_sines(params.kind)) {
            acc sine, cosine;
            sine_cosine(x, sine, cosine);
            target[0] = from_acc<T>(level[e / 2] * sine + eps);
            target[R] = from_acc<T>(level[e / 2] * cosine + eps);
          } else if (params.kind == RandomFeatures::kPositive) {
            target[0] =
                from_acc<T>(factor * exponential(x - level[e / 2]) + eps);
          } else {
            target[0] = from_acc<T>((x <= acc(0) ? acc(0) : factor * x) + eps);
          }
        }
      }
    }
  }
}

} // namespace subquad::random_features

namespace subquad {

// D <= 256, which the glue checks. What lies outside rows is not written.
template <typename Launcher>
int launch_random_features_forward(
    const Launcher& launch,
    const RandomFeaturesParams& params,
    ScalarKind dtype) {
  using namespace random_features;
  const int64_t heads = params.rows * params.heads;
  if (heads == 0) {
    return 0;
  }
  return dispatch_scalar(dtype, [&]<typename T>() {
    using Shape = RowShape<T>;
    const auto run = [&](ForwardPass pass) {
      return launch(
          random_features_forward_kernel<T>,
          row_grid(heads, ceil_divide(expected_length(params), Shape::kRows)),
          dim3(Shape::kThreads),
          Shared<T>::bytes(params.head_dim),
          params,
          pass,
          vectors_of<T>(params));
    };
    if (!is_stabilized(params) || params.stabilizer == Stabilizer::kToken) {
      return run({is_stabilized(params), true});
    }
    int error = run({true, false});
    if (error == 0) {
      error = launch(
          random_features_maximum_kernel<acc_t<T>>,
          dim3(grid_size(heads)),
          dim3(kScanThreads),
          kScanWarps * sizeof(acc_t<T>),
          params);
    }
    return error != 0 ? error : run({false, true});
  });
}

} // namespace subquad
