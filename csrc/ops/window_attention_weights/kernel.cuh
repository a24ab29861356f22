#pragma once

#include <cmath>
#include <cstdint>

#include "common/window_attention_weights.h"
#include "cuda/grid.h"
#include "cuda/scalar.cuh"

// Plain kernels for a look at the weights: a warp for every query, key or line
// of a table, which gathers what belongs to it in a fixed order. No shared
// memory, no barriers, no atomics. Loops end together for a whole warp.
namespace subquad {

namespace window_attention_weights {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kMinBlocks = 5; // of an SM: registers for all that a loop needs

// One head of one row.
struct HeadRow {
  int64_t batch;
  int64_t head;
  int64_t key_head;
  Span queries;
  Span keys;
};

__device__ inline HeadRow
head_row(const WindowAttentionParams& params, int64_t row, int64_t head) {
  return {
      params.packed ? 0 : row,
      head,
      head / (params.heads / params.key_heads),
      clamped_row_span(params.query_spans, row, params.query_length),
      clamped_row_span(params.key_spans, row, params.key_length)};
}

// Query i of a row and what it sees.
struct Sight {
  int64_t token;
  int64_t line;      // (b * H + h) * L + token
  int64_t bias_line; // of the bias
  int64_t origin;    // key of slot 0
  Range keys;        // within the row
};

__device__ inline Sight
sight_of(const WindowAttentionParams& params, const HeadRow& at, int64_t i) {
  const int64_t rank = at.queries.start + i;
  const int64_t token = query_token(params, at.batch, rank);
  const int64_t position =
      query_position(params, at.batch, at.queries.start, rank, token);
  return {
      token,
      (at.batch * params.heads + at.head) * params.query_length + token,
      position - block_begin(position, params.window),
      window_origin(position, params.window),
      window_keys(position, params.window, at.keys.length)};
}

template <typename T>
__device__ const T* vector_at(
    const void* data,
    const Strides& stride,
    int64_t batch,
    int64_t head,
    int64_t token) {
  return static_cast<const T*>(data) + batch * stride.batch +
      head * stride.head + token * stride.row;
}

template <typename T>
__device__ const T* query_at(
    const WindowAttentionParams& params,
    const HeadRow& at,
    int64_t token) {
  return vector_at<T>(
      params.query, params.query_stride, at.batch, at.head, token);
}

// Key j of the row.
template <typename T>
__device__ const T*
key_at(const WindowAttentionParams& params, const HeadRow& at, int64_t j) {
  return vector_at<T>(
      params.key,
      params.key_stride,
      at.batch,
      at.key_head,
      key_token(params, at.batch, at.keys.start + j));
}

template <typename T>
__device__ const T* relative_key_at(
    const WindowAttentionParams& params,
    int64_t head,
    int64_t slot) {
  return static_cast<const T*>(params.relative_key) +
      head * params.relative_key_head_stride + slot * params.head_dim;
}

__device__ inline int64_t lane_index() {
  return threadIdx.x % 32;
}

// This warp among those of its grid column, and how many there are.
__device__ inline int64_t warp_index() {
  return int64_t{blockIdx.y} * kWarps + threadIdx.x / 32;
}
__device__ inline int64_t warp_count() {
  return int64_t{gridDim.y} * kWarps;
}

// Grid: (rows * heads, parts of the row's queries).
template <typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    window_attention_weights_forward_kernel(
        WindowAttentionParams params,
        T* weights) {
  using acc_t = cuda::acc_t<T>;
  const HeadRow at =
      head_row(params, blockIdx.x / params.heads, blockIdx.x % params.heads);
  const acc_t scale = static_cast<acc_t>(params.scale);
  for (int64_t i = warp_index(); i < at.queries.length; i += warp_count()) {
    const Sight sight = sight_of(params, at, i);
    const acc_t lse = static_cast<const acc_t*>(params.logsumexp)[sight.line];
    if (lse == -std::numeric_limits<acc_t>::infinity()) {
      continue;
    }
    const T* query = query_at<T>(params, at, sight.token);
    T* slots = weights + sight.line * window_slots(params.window);
    for (int64_t j = sight.keys.begin; j < sight.keys.end; ++j) {
      const int64_t slot = j - sight.origin;
      const T* key = key_at<T>(params, at, j);
      acc_t logit = 0;
      for (int64_t d = lane_index(); d < params.head_dim; d += 32) {
        acc_t factor = scale * cuda::to_acc(key[d]);
        if (params.relative_key != nullptr) {
          factor += cuda::to_acc(relative_key_at<T>(params, at.head, slot)[d]);
        }
        logit += cuda::to_acc(query[d]) * factor;
      }
      logit = cuda::sum_lanes(logit);
      if (lane_index() != 0) {
        continue;
      }
      if (params.bias != nullptr) {
        logit += cuda::to_acc(
            static_cast<const T*>(params.bias)
                [at.head * params.bias_head_stride +
                 sight.bias_line * window_slots(params.window) + slot]);
      }
      if (params.key_bias != nullptr) {
        logit +=
            cuda::to_acc(static_cast<const T*>(params.key_bias)
                             [at.batch * params.key_length +
                              key_token(params, at.batch, at.keys.start + j)]);
      }
      slots[slot] = cuda::from_acc<T>(std::exp(logit - lse));
    }
  }
}

// The gradients of the logits are grad * weights.
template <typename T>
struct LogitGradients {
  const T* grad;
  const T* weights;
  int64_t slots;

  LogitGradients(
      const WindowAttentionParams& params,
      const WindowAttentionWeightsGradientParams& gradients)
      : grad(static_cast<const T*>(gradients.grad)),
        weights(static_cast<const T*>(gradients.weights)),
        slots(window_slots(params.window)) {}

  __device__ cuda::acc_t<T> at(int64_t line, int64_t slot) const {
    const int64_t n = line * slots + slot;
    return cuda::to_acc(grad[n]) * cuda::to_acc(weights[n]);
  }
};

// Grid: (rows * heads, parts of the row's queries).
template <typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    window_attention_weights_backward_query_kernel(
        WindowAttentionParams params,
        LogitGradients<T> logits,
        T* grad_query,
        Strides stride,
        cuda::acc_t<T>* grad_lse) {
  using acc_t = cuda::acc_t<T>;
  const HeadRow at =
      head_row(params, blockIdx.x / params.heads, blockIdx.x % params.heads);
  const acc_t scale = static_cast<acc_t>(params.scale);
  for (int64_t i = warp_index(); i < at.queries.length; i += warp_count()) {
    const Sight sight = sight_of(params, at, i);
    if (grad_lse != nullptr && lane_index() == 0) {
      acc_t total = 0;
      for (int64_t j = sight.keys.begin; j < sight.keys.end; ++j) {
        total += logits.at(sight.line, j - sight.origin);
      }
      grad_lse[sight.line] = -total;
    }
    if (grad_query == nullptr) {
      continue;
    }
    T* result = grad_query + at.batch * stride.batch + at.head * stride.head +
        sight.token * stride.row;
    for (int64_t d = lane_index(); d < params.head_dim; d += 32) {
      acc_t sum = 0;
      for (int64_t j = sight.keys.begin; j < sight.keys.end; ++j) {
        const int64_t slot = j - sight.origin;
        acc_t factor = scale * cuda::to_acc(key_at<T>(params, at, j)[d]);
        if (params.relative_key != nullptr) {
          factor += cuda::to_acc(relative_key_at<T>(params, at.head, slot)[d]);
        }
        sum += logits.at(sight.line, slot) * factor;
      }
      result[d] = cuda::from_acc<T>(sum);
    }
  }
}

// Calls visit(sight, slot) for the queries i = first, first + step, ... of the
// row that see key j.
template <typename Visit>
__device__ void for_each_query_of_key(
    const WindowAttentionParams& params,
    const HeadRow& at,
    int64_t j,
    int64_t first,
    int64_t step,
    const Visit& visit) {
  // With a table of positions any query may see the key.
  Range queries{0, at.queries.length};
  if (params.query_position == nullptr) {
    const Range positions = window_queries(j, params.window);
    queries.begin = max_index(positions.begin - params.query_offset, 0);
    queries.end = min_index(positions.end - params.query_offset, queries.end);
  }
  for (int64_t i = queries.begin + first; i < queries.end; i += step) {
    const Sight sight = sight_of(params, at, i);
    if (j >= sight.keys.begin && j < sight.keys.end) {
      visit(sight, j - sight.origin);
    }
  }
}

// Grid: (rows * key heads, parts of the row's keys).
template <typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    window_attention_weights_backward_key_kernel(
        WindowAttentionParams params,
        LogitGradients<T> logits,
        T* grad_key,
        Strides stride) {
  using acc_t = cuda::acc_t<T>;
  const int64_t row = blockIdx.x / params.key_heads;
  const int64_t key_head = blockIdx.x % params.key_heads;
  const int64_t group = params.heads / params.key_heads;
  const HeadRow first = head_row(params, row, key_head * group);
  const acc_t scale = static_cast<acc_t>(params.scale);
  for (int64_t j = warp_index(); j < first.keys.length; j += warp_count()) {
    T* result = grad_key + first.batch * stride.batch + key_head * stride.head +
        key_token(params, first.batch, first.keys.start + j) * stride.row;
    for (int64_t d = lane_index(); d < params.head_dim; d += 32) {
      acc_t sum = 0;
      for (int64_t h = 0; h < group; ++h) {
        const HeadRow at = head_row(params, row, first.head + h);
        for_each_query_of_key(
            params, at, j, 0, 1, [&](const Sight& sight, int64_t slot) {
              sum += logits.at(sight.line, slot) * scale *
                  cuda::to_acc(query_at<T>(params, at, sight.token)[d]);
            });
      }
      result[d] = cuda::from_acc<T>(sum);
    }
  }
}

// Grid: (rows, parts of the row's keys). The lanes share the queries.
template <typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    window_attention_weights_backward_key_bias_kernel(
        WindowAttentionParams params,
        LogitGradients<T> logits,
        T* grad_key_bias) {
  const HeadRow first = head_row(params, blockIdx.x, 0);
  for (int64_t j = warp_index(); j < first.keys.length; j += warp_count()) {
    cuda::acc_t<T> sum = 0;
    for (int64_t head = 0; head < params.heads; ++head) {
      for_each_query_of_key(
          params,
          head_row(params, blockIdx.x, head),
          j,
          lane_index(),
          32,
          [&](const Sight& sight, int64_t slot) {
            sum += logits.at(sight.line, slot);
          });
    }
    sum = cuda::sum_lanes(sum);
    if (lane_index() == 0) {
      const int64_t token =
          key_token(params, first.batch, first.keys.start + j);
      grad_key_bias[first.batch * params.key_length + token] =
          cuda::from_acc<T>(sum);
    }
  }
}

// Calls visit(at) for every row and every head that shares table `table`.
template <typename Visit>
__device__ void for_each_head_row(
    const WindowAttentionParams& params,
    int64_t head_stride,
    int64_t table,
    const Visit& visit) {
  const int64_t shared = head_stride == 0 ? params.heads : 1;
  for (int64_t row = 0; row < params.rows; ++row) {
    for (int64_t h = 0; h < shared; ++h) {
      visit(head_row(params, row, table * shared + h));
    }
  }
}

// Grid: (1, parts of the elements [tables, block, slots]). The lanes share the
// queries.
template <typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    window_attention_weights_backward_bias_kernel(
        WindowAttentionParams params,
        LogitGradients<T> logits,
        int64_t elements,
        T* grad_bias) {
  const int64_t block = params.window.block;
  for (int64_t n = warp_index(); n < elements; n += warp_count()) {
    const int64_t slot = n % logits.slots;
    const int64_t bias_line = n / logits.slots % block;
    // Without a table of positions every block-th query has this line.
    const bool regular = params.query_position == nullptr;
    const int64_t shifted = bias_line - params.query_offset;
    const int64_t first =
        regular ? shifted - floor_divide(shifted, block) * block : 0;
    const int64_t step = regular ? block : 1;
    cuda::acc_t<T> sum = 0;
    for_each_head_row(
        params,
        params.bias_head_stride,
        n / logits.slots / block,
        [&](const HeadRow& at) {
          for (int64_t i = first + lane_index() * step; i < at.queries.length;
               i += 32 * step) {
            const Sight sight = sight_of(params, at, i);
            const int64_t j = sight.origin + slot;
            if (sight.bias_line == bias_line && j >= sight.keys.begin &&
                j < sight.keys.end) {
              sum += logits.at(sight.line, slot);
            }
          }
        });
    sum = cuda::sum_lanes(sum);
    if (lane_index() == 0) {
      grad_bias[n] = cuda::from_acc<T>(sum);
    }
  }
}

// Grid: (1, parts of the lines [tables, slots]).
template <typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    window_attention_weights_backward_relative_key_kernel(
        WindowAttentionParams params,
        LogitGradients<T> logits,
        int64_t lines,
        T* grad_relative_key) {
  for (int64_t n = warp_index(); n < lines; n += warp_count()) {
    const int64_t slot = n % logits.slots;
    for (int64_t d = lane_index(); d < params.head_dim; d += 32) {
      cuda::acc_t<T> sum = 0;
      for_each_head_row(
          params,
          params.relative_key_head_stride,
          n / logits.slots,
          [&](const HeadRow& at) {
            for (int64_t i = 0; i < at.queries.length; ++i) {
              const Sight sight = sight_of(params, at, i);
              const int64_t j = sight.origin + slot;
              if (j >= sight.keys.begin && j < sight.keys.end) {
                sum += logits.at(sight.line, slot) *
                    cuda::to_acc(query_at<T>(params, at, sight.token)[d]);
              }
            }
          });
      grad_relative_key[n * params.head_dim + d] = cuda::from_acc<T>(sum);
    }
  }
}

// A column of warps for each of `columns`, in parts of `size` things each. More
// columns than a grid has are refused when the kernel is launched.
inline dim3 grid_of(int64_t columns, int64_t size) {
  constexpr int64_t kMaxParts = 65535;
  return dim3(
      cuda::exact_grid_size(columns),
      static_cast<unsigned>(
          max_index(min_index(ceil_divide(size, kWarps), kMaxParts), 1)));
}

} // namespace window_attention_weights

template <typename Launcher>
int launch_window_attention_weights_forward(
    const Launcher& launch,
    const WindowAttentionParams& params,
    void* weights,
    ScalarKind dtype) {
  using namespace window_attention_weights;
  if (params.rows == 0) {
    return 0;
  }
  return cuda::dispatch_scalar(dtype, [&]<typename T>() {
    return launch(
        window_attention_weights_forward_kernel<T>,
        grid_of(params.rows * params.heads, params.query_length),
        dim3(kThreads),
        0,
        params,
        static_cast<T*>(weights));
  });
}

template <typename Launcher>
int launch_window_attention_weights_backward(
    const Launcher& launch,
    const WindowAttentionParams& params,
    const WindowAttentionWeightsGradientParams& gradients,
    ScalarKind dtype) {
  using namespace window_attention_weights;
  return cuda::dispatch_scalar(dtype, [&]<typename T>() {
    const LogitGradients<T> logits(params, gradients);
    int error = 0;
    const auto run = [&](bool wanted, auto kernel, dim3 grid, auto... more) {
      if (wanted && error == 0) {
        error =
            launch(kernel, grid, dim3(kThreads), 0, params, logits, more...);
      }
    };
    const auto tables = [&](int64_t head_stride) {
      return head_stride == 0 ? int64_t{1} : params.heads;
    };
    const auto data = [](void* gradient) { return static_cast<T*>(gradient); };
    const bool rows = params.rows > 0;
    run(rows &&
            (gradients.grad_query != nullptr || gradients.grad_lse != nullptr),
        window_attention_weights_backward_query_kernel<T>,
        grid_of(params.rows * params.heads, params.query_length),
        data(gradients.grad_query),
        gradients.grad_query_stride,
        static_cast<cuda::acc_t<T>*>(gradients.grad_lse));
    run(rows && gradients.grad_key != nullptr,
        window_attention_weights_backward_key_kernel<T>,
        grid_of(params.rows * params.key_heads, params.key_length),
        data(gradients.grad_key),
        gradients.grad_key_stride);
    run(rows && gradients.grad_key_bias != nullptr,
        window_attention_weights_backward_key_bias_kernel<T>,
        grid_of(params.rows, params.key_length),
        data(gradients.grad_key_bias));
    const int64_t bias_size =
        tables(params.bias_head_stride) * params.window.block * logits.slots;
    run(gradients.grad_bias != nullptr,
        window_attention_weights_backward_bias_kernel<T>,
        grid_of(1, bias_size),
        bias_size,
        data(gradients.grad_bias));
    const int64_t relative_lines =
        tables(params.relative_key_head_stride) * logits.slots;
    run(gradients.grad_relative_key != nullptr,
        window_attention_weights_backward_relative_key_kernel<T>,
        grid_of(1, relative_lines),
        relative_lines,
        data(gradients.grad_relative_key));
    return error;
  });
}

} // namespace subquad
