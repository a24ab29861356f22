#pragma once

#include <cstdint>

#include "common/merge.h"
#include "common/merge_attention.h"
#include "cuda/grid.h"
#include "cuda/scalar.cuh"

namespace subquad {

namespace merge_attention {

constexpr int kThreads = 128;

// A group of `lanes` neighbouring lanes (a power of two) takes one line: query
// l of head h of batch entry b.
struct Lines {
  int64_t count;
  int lanes;
};

struct Line {
  int64_t index; // (b * H + h) * L + l
  int64_t batch;
  int64_t head;
  int64_t row;

  __device__ int64_t offset(const Strides& stride) const {
    return batch * stride.batch + head * stride.head + row * stride.row;
  }
};

__device__ inline Line line_at(
    const MergeAttentionParams& params,
    int64_t index) {
  return {
      index,
      index / params.length / params.heads,
      index / params.length % params.heads,
      index % params.length};
}

// Grid: as many blocks as the lines of kThreads / lanes each need. No shared
// memory, no barriers. A side without keys is not read.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    merge_attention_forward_kernel(MergeAttentionParams params, Lines lines) {
  using acc_t = cuda::acc_t<T>;
  const auto* lse_a = static_cast<const acc_t*>(params.lse_a);
  const auto* lse_b = static_cast<const acc_t*>(params.lse_b);
  const int64_t lane = threadIdx.x % lines.lanes;
  const int64_t step = int64_t{gridDim.x} * kThreads / lines.lanes;
  int64_t n = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / lines.lanes;
  for (; n < lines.count; n += step) {
    const Line line = line_at(params, n);
    const Merged<acc_t> merged = merge_lse(lse_a[n], lse_b[n]);
    const bool empty_a = is_empty_lse(lse_a[n]);
    const bool empty_b = is_empty_lse(lse_b[n]);
    if (lane == 0) {
      static_cast<acc_t*>(params.lse)[n] = merged.lse;
    }
    const T* a = static_cast<const T*>(params.output_a) +
        line.offset(params.output_a_stride);
    const T* b = static_cast<const T*>(params.output_b) +
        line.offset(params.output_b_stride);
    T* output =
        static_cast<T*>(params.output) + line.offset(params.output_stride);
    for (int64_t m = lane * kWidth; m < params.width;
         m += lines.lanes * kWidth) {
      acc_t x[kWidth] = {};
      acc_t y[kWidth] = {};
      if (!empty_a) {
        cuda::load<kWidth>(a + m, x);
      }
      if (!empty_b) {
        cuda::load<kWidth>(b + m, y);
      }
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        x[i] = x[i] * merged.weight_a + y[i] * merged.weight_b;
      }
      cuda::store<kWidth>(x, output + m);
    }
  }
}

// As forward; the dot product of a line is summed over its lanes. With
// o = w_a a + w_b b and s = log(exp(s_a) + exp(s_b)):
//   da = w_a do,   ds_a = w_a w_b do . (a - b) + w_a ds
//   db = w_b do,   ds_b = -w_a w_b do . (a - b) + w_b ds
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) merge_attention_backward_kernel(
    MergeAttentionParams params,
    MergeAttentionGradients gradients,
    Lines lines) {
  using acc_t = cuda::acc_t<T>;
  const auto* lse_a = static_cast<const acc_t*>(params.lse_a);
  const auto* lse_b = static_cast<const acc_t*>(params.lse_b);
  const auto* grad_lse = static_cast<const acc_t*>(gradients.grad_lse);
  auto* grad_lse_a = static_cast<acc_t*>(gradients.grad_lse_a);
  auto* grad_lse_b = static_cast<acc_t*>(gradients.grad_lse_b);
  const bool wants_lse = grad_lse_a != nullptr || grad_lse_b != nullptr;
  const int64_t lane = threadIdx.x % lines.lanes;
  const int64_t per_block = kThreads / lines.lanes;
  // The bound is the same for a whole block: all of its lanes reach the sum.
  for (int64_t first = blockIdx.x * per_block; first < lines.count;
       first += gridDim.x * per_block) {
    const int64_t n = first + threadIdx.x / lines.lanes;
    const bool valid = n < lines.count;
    const Line line = line_at(params, valid ? n : first);
    const Merged<acc_t> merged =
        merge_lse(lse_a[line.index], lse_b[line.index]);
    const bool empty_a = is_empty_lse(lse_a[line.index]);
    const bool empty_b = is_empty_lse(lse_b[line.index]);
    const bool differ = wants_lse && !empty_a && !empty_b;
    const int64_t width = valid ? params.width : 0;
    acc_t moved = 0; // from b to a
    for (int64_t m = lane * kWidth; m < width; m += lines.lanes * kWidth) {
      acc_t grad[kWidth] = {};
      if (gradients.grad_output != nullptr) {
        cuda::load<kWidth>(
            static_cast<const T*>(gradients.grad_output) +
                line.offset(gradients.grad_output_stride) + m,
            grad);
      }
      if (differ) {
        acc_t a[kWidth];
        acc_t b[kWidth];
        cuda::load<kWidth>(
            static_cast<const T*>(params.output_a) +
                line.offset(params.output_a_stride) + m,
            a);
        cuda::load<kWidth>(
            static_cast<const T*>(params.output_b) +
                line.offset(params.output_b_stride) + m,
            b);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          moved += grad[i] * (a[i] - b[i]);
        }
      }
      const auto write =
          [&](void* data, const Strides& stride, bool empty, acc_t weight) {
            if (data == nullptr) {
              return;
            }
            acc_t scaled[kWidth];
#pragma unroll
            for (int i = 0; i < kWidth; ++i) {
              scaled[i] = empty ? acc_t(0) : weight * grad[i];
            }
            cuda::store<kWidth>(
                scaled, static_cast<T*>(data) + line.offset(stride) + m);
          };
      write(
          gradients.grad_output_a,
          gradients.grad_output_a_stride,
          empty_a,
          merged.weight_a);
      write(
          gradients.grad_output_b,
          gradients.grad_output_b_stride,
          empty_b,
          merged.weight_b);
    }
    moved =
        merged.weight_a * merged.weight_b * cuda::sum_lanes(moved, lines.lanes);
    if (!valid || lane != 0) {
      continue;
    }
    const acc_t grad_all = grad_lse == nullptr ? acc_t(0) : grad_lse[n];
    if (grad_lse_a != nullptr) {
      grad_lse_a[n] = empty_a ? acc_t(0) : merged.weight_a * grad_all + moved;
    }
    if (grad_lse_b != nullptr) {
      grad_lse_b[n] = empty_b ? acc_t(0) : merged.weight_b * grad_all - moved;
    }
  }
}

inline bool is_aligned(const void* data, const Strides& stride, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
      stride.batch * bytes % 16 == 0 && stride.head * bytes % 16 == 0 &&
      stride.row * bytes % 16 == 0;
}

// Launches with vectors of 16 bytes where all tensors allow them.
template <typename T, typename Launch>
int launch_lines(
    const MergeAttentionParams& params,
    bool aligned,
    const Launch& launch) {
  const auto with_width = [&]<int kWidth>() {
    Lines lines{params.batch * params.heads * params.length, 1};
    while (lines.lanes < 32 && lines.lanes * kWidth < params.width) {
      lines.lanes *= 2;
    }
    const dim3 grid(
        cuda::grid_size(ceil_divide(lines.count, kThreads / lines.lanes)));
    return launch.template operator()<kWidth>(grid, lines);
  };
  constexpr int kVector = cuda::kVectorWidth<T>;
  return aligned && params.width % kVector == 0
      ? with_width.template operator()<kVector>()
      : with_width.template operator()<1>();
}

} // namespace merge_attention

template <typename Launcher>
int launch_merge_attention_forward(
    const Launcher& launch,
    const MergeAttentionParams& params,
    ScalarKind dtype) {
  using namespace merge_attention;
  return cuda::dispatch_scalar(dtype, [&]<typename T>() {
    const auto aligned = [](const void* data, const Strides& stride) {
      return is_aligned(data, stride, sizeof(T));
    };
    return launch_lines<T>(
        params,
        aligned(params.output_a, params.output_a_stride) &&
            aligned(params.output_b, params.output_b_stride) &&
            aligned(params.output, params.output_stride),
        [&]<int kWidth>(dim3 grid, Lines lines) {
          return launch(
              merge_attention_forward_kernel<T, kWidth>,
              grid,
              dim3(kThreads),
              0,
              params,
              lines);
        });
  });
}

template <typename Launcher>
int launch_merge_attention_backward(
    const Launcher& launch,
    const MergeAttentionParams& params,
    const MergeAttentionGradients& gradients,
    ScalarKind dtype) {
  using namespace merge_attention;
  return cuda::dispatch_scalar(dtype, [&]<typename T>() {
    const auto aligned = [](const void* data, const Strides& stride) {
      return data == nullptr || is_aligned(data, stride, sizeof(T));
    };
    return launch_lines<T>(
        params,
        aligned(params.output_a, params.output_a_stride) &&
            aligned(params.output_b, params.output_b_stride) &&
            aligned(gradients.grad_output, gradients.grad_output_stride) &&
            aligned(gradients.grad_output_a, gradients.grad_output_a_stride) &&
            aligned(gradients.grad_output_b, gradients.grad_output_b_stride),
        [&]<int kWidth>(dim3 grid, Lines lines) {
          return launch(
              merge_attention_backward_kernel<T, kWidth>,
              grid,
              dim3(kThreads),
              0,
              params,
              gradients,
              lines);
        });
  });
}

} // namespace subquad
