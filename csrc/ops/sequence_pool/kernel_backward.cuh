#pragma once

#include "ops/sequence_pool/kernel_forward.cuh"

// With P = exp(logits - lse) and o = P^T v:
//   dv = P do,   dlogits = P (v . do - do . o + dlse)
namespace subquad::sequence_pool {

// dlse - do . o. Grid: a warp per slot.
template <typename T>
__global__ void __launch_bounds__(kSlotThreads)
    sequence_pool_backward_slot_kernel(
        SequencePoolParams params,
        SequencePoolGradients gradients,
        acc_t<T>* slot_grad) {
  using acc = acc_t<T>;
  const int64_t slots = params.rows * params.heads * params.slots;
  const int64_t M = params.value_dim;
  const T* output = static_cast<const T*>(params.output);
  const T* grad_output = static_cast<const T*>(gradients.grad_output);
  for (int64_t first = int64_t{blockIdx.x} * kSlotWarps; first < slots;
       first += int64_t{gridDim.x} * kSlotWarps) {
    const int64_t slot = first + threadIdx.x / kWarpSize;
    acc dot = 0;
    if (grad_output != nullptr && slot < slots) {
      for (int64_t m = lane_index(); m < M; m += kWarpSize) {
        dot += to_acc(grad_output[slot * M + m]) * to_acc(output[slot * M + m]);
      }
    }
    dot = sum_lanes(dot);
    if (slot < slots && lane_index() == 0) {
      const acc direct = gradients.grad_lse == nullptr
          ? acc(0)
          : static_cast<const acc*>(gradients.grad_lse)[slot];
      slot_grad[slot] = direct - dot;
    }
  }
}

// Starts copies of columns of grad_output for the slots [first, first + rows).
template <typename T>
__device__ void stage_gradients(
    T* tile,
    int stride,
    int rows,
    const SequencePoolParams& params,
    const SequencePoolGradients& gradients,
    const Head& at,
    int64_t first,
    int64_t first_column,
    int columns,
    bool vectors) {
  const T* grad = static_cast<const T*>(gradients.grad_output) +
      at.slots(params) * params.value_dim + first_column;
  stage_rows(
      tile,
      stride,
      rows,
      columns,
      vectors,
      gradients.grad_output,
      [&](int r) -> const T* {
        return first + r < params.slots ? grad + (first + r) * params.value_dim
                                        : nullptr;
      });
  cp_async_commit();
}

// Grid: (rows * heads, tiles of tokens). A warp owns 16 tokens; grad_output
// passes in chunks of slots through the other tile. Barriers as in forward.
// M <= 256.
template <typename T>
__global__ void __launch_bounds__(RowShape<T>::kThreads, 1)
    sequence_pool_backward_logits_kernel(
        SequencePoolParams params,
        SequencePoolGradients gradients,
        bool value_vectors,
        bool grad_vectors,
        const acc_t<T>* slot_grad) {
  using Shape = RowShape<T>;
  using acc = acc_t<T>;
  constexpr int kTiles = Shape::kTiles;
  SUBQUAD_SHARED(memory);
  const int M = static_cast<int>(params.value_dim);
  const int stride = tile_stride<T>(M);
  T* values = reinterpret_cast<T*>(memory);  // [kRows, M]
  T* grads = values + Shape::kRows * stride; // [kOthers, M]
  const int lane = lane_index();
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const Head at(params, blockIdx.x / params.heads, blockIdx.x % params.heads);
  const int64_t C = params.slots;
  const int64_t length = at.tokens.span.length;
  const T* logits = head_of(
      static_cast<const T*>(params.logits),
      params.logits_stride,
      at.tokens.batch,
      at.head);
  T* result = head_of(
      static_cast<T*>(gradients.grad_logits),
      gradients.grad_logits_stride,
      at.tokens.batch,
      at.head);
  const acc* lse = static_cast<const acc*>(params.lse) + at.slots(params);
  for (int64_t tile = int64_t{blockIdx.y} * Shape::kRows; tile < length;
       tile += int64_t{gridDim.y} * Shape::kRows) {
    const bool through_output = gradients.grad_output != nullptr;
    __syncthreads();
    if (through_output) {
      stage_values(
          values,
          stride,
          Shape::kRows,
          params,
          at,
          tile,
          length,
          0,
          M,
          value_vectors);
    }
    int64_t tokens[2]; // -1: none
    for (int half = 0; half < 2; ++half) {
      const int64_t i = tile + warp * kWarpRows + fragment_row(lane, 2 * half);
      tokens[half] = i < length ? at.tokens.token(i) : -1;
    }
    for (int64_t first = 0; first < C; first += Shape::kOthers) {
      Fragment<acc, kTiles> grad; // tokens x slots
      grad.zero();
      if (through_output) {
        __syncthreads();
        stage_gradients(
            grads,
            stride,
            Shape::kOthers,
            params,
            gradients,
            at,
            first,
            0,
            M,
            grad_vectors);
        cp_async_wait<0>();
        __syncthreads();
        multiply_transposed<T, kTiles>(
            grad,
            values + warp * kWarpRows * stride,
            stride,
            grads,
            stride,
            padded_width(M));
      }
#pragma unroll
      for (int k = 0; k < kTiles; ++k) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int64_t slot = first + fragment_column(lane, k, e);
          const int64_t token = tokens[e / 2];
          if (slot >= C || token < 0) {
            continue;
          }
          const acc logit =
              to_acc(logits[token * params.logits_stride.row + slot]);
          // No token of the row weighs anything where the slot is empty.
          const acc weight = lse[slot] == -std::numeric_limits<acc>::infinity()
              ? acc(0)
              : exponential(logit - lse[slot]);
          const acc total = grad.v[k][e] + slot_grad[at.slots(params) + slot];
          result[token * gradients.grad_logits_stride.row + slot] =
              from_acc<T>(weight * total);
        }
      }
    }
  }
}

// Grid: (rows * value heads, tiles of tokens, chunks of kColumns of M). A warp
// owns 16 tokens; grad_output passes in chunks of slots, head by head of those
// that share the values. Barriers as in forward.
template <typename T>
__global__ void __launch_bounds__(RowShape<T>::kThreads, 1)
    sequence_pool_backward_value_kernel(
        SequencePoolParams params,
        SequencePoolGradients gradients,
        bool vectors) {
  using Shape = RowShape<T>;
  using acc = acc_t<T>;
  constexpr int kTiles = Shape::kTiles;
  SUBQUAD_SHARED(memory);
  T* grads = reinterpret_cast<T*>(memory); // [kOthers, kColumns]
  const int stride = tile_stride<T>(Shape::kColumns);
  const int lane = lane_index();
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t row = blockIdx.x / params.value_heads;
  const int64_t value_head = blockIdx.x % params.value_heads;
  const int64_t group = params.heads / params.value_heads;
  const int64_t C = params.slots;
  const Chunk<T> chunk(blockIdx.z, params.value_dim);
  const TokenRow row_tokens = token_row(params, row);
  T* result = head_of(
                  static_cast<T*>(gradients.grad_value),
                  gradients.grad_value_stride,
                  row_tokens.batch,
                  value_head) +
      chunk.first;
  for (int64_t tile = int64_t{blockIdx.y} * Shape::kRows;
       tile < row_tokens.span.length;
       tile += int64_t{gridDim.y} * Shape::kRows) {
    int64_t tokens[2]; // -1: none
    for (int half = 0; half < 2; ++half) {
      const int64_t i = tile + warp * kWarpRows + fragment_row(lane, 2 * half);
      tokens[half] = i < row_tokens.span.length ? row_tokens.token(i) : -1;
    }
    Fragment<acc, Shape::kColumns / 8> output;
    output.zero();
    for (int64_t g = 0; g < group && gradients.grad_output != nullptr; ++g) {
      const Head at(params, row, value_head * group + g);
      const T* logits = head_of(
          static_cast<const T*>(params.logits),
          params.logits_stride,
          at.tokens.batch,
          at.head);
      const acc* lse = static_cast<const acc*>(params.lse) + at.slots(params);
      for (int64_t first = 0; first < C; first += Shape::kOthers) {
        __syncthreads();
        stage_gradients(
            grads,
            stride,
            Shape::kOthers,
            params,
            gradients,
            at,
            first,
            chunk.first,
            chunk.columns,
            vectors);
        Fragment<acc, kTiles> weights; // tokens x slots
#pragma unroll
        for (int k = 0; k < kTiles; ++k) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int64_t slot = first + fragment_column(lane, k, e);
            const int64_t token = tokens[e / 2];
            const bool weighs = slot < C && token >= 0 &&
                lse[slot] != -std::numeric_limits<acc>::infinity();
            weights.v[k][e] = weighs
                ? exponential(
                      to_acc(logits[token * params.logits_stride.row + slot]) -
                      lse[slot])
                : acc(0);
          }
        }
        cp_async_wait<0>();
        __syncthreads();
        multiply<T, kTiles, Shape::kColumns / 8>(
            output, weights, grads, stride, chunk.columns);
      }
    }
    for (int half = 0; half < 2; ++half) {
      if (tokens[half] < 0) {
        continue;
      }
      T* target = result + tokens[half] * gradients.grad_value_stride.row;
#pragma unroll
      for (int n = 0; n < Shape::kColumns / 8; ++n) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          const int column = fragment_column(lane, n, e);
          if (column < chunk.columns) {
            target[column] = from_acc<T>(output.v[n][e]);
          }
        }
      }
    }
  }
}

} // namespace subquad::sequence_pool

namespace subquad {

// What lies outside rows is not written.
template <typename Launcher>
int launch_sequence_pool_backward(
    const Launcher& launch,
    const SequencePoolParams& params,
    const SequencePoolGradients& gradients,
    void* memory,
    ScalarKind dtype) {
  using namespace sequence_pool;
  const int64_t heads = params.rows * params.heads;
  if (heads == 0) {
    return 0;
  }
  return dispatch_scalar(dtype, [&]<typename T>() {
    using Shape = RowShape<T>;
    using acc = acc_t<T>;
    const int64_t C = params.slots;
    const int64_t M = params.value_dim;
    auto* slot_grad = static_cast<acc*>(memory);
    const int64_t tiles = ceil_divide(expected_length(params), Shape::kRows);
    const bool grad_vectors =
        takes_vectors<T>(gradients.grad_output, {C * M, C * M, M}, M);
    int error = 0;
    if (gradients.grad_logits != nullptr && C > 0) {
      error = launch(
          sequence_pool_backward_slot_kernel<T>,
          slot_grid(params),
          dim3(kSlotThreads),
          0,
          params,
          gradients,
          slot_grad);
      if (error == 0) {
        error = launch(
            sequence_pool_backward_logits_kernel<T>,
            row_grid(heads, tiles),
            dim3(Shape::kThreads),
            static_cast<size_t>(Shape::kRows + Shape::kOthers) *
                tile_stride<T>(M) * sizeof(T),
            params,
            gradients,
            takes_vectors<T>(params.value, params.value_stride, M),
            grad_vectors,
            slot_grad);
      }
    }
    if (gradients.grad_value != nullptr && M > 0 && error == 0) {
      error = launch(
          sequence_pool_backward_value_kernel<T>,
          row_grid(params.rows * params.value_heads, tiles, Chunk<T>::count(M)),
          dim3(Shape::kThreads),
          Shape::kOthers * tile_stride<T>(Shape::kColumns) * sizeof(T),
          params,
          gradients,
          grad_vectors);
    }
    return error;
  });
}

} // namespace subquad
