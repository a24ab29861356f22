#pragma once

#include <cstdint>

#include "common/mask_to_spans.h"
#include "cuda/grid.h"
#include "cuda/prim.cuh"

namespace subquad {

namespace mask_to_spans {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr size_t kSharedBytes = kWarps * sizeof(int64_t);

// Sums over the threads of the block before this one, and over all.
struct Scan {
  int64_t before;
  int64_t total;
};

// The first barrier orders the warps' sums before their readers, the second the
// readers before the next scan.
__device__ inline Scan scan_block(int64_t value, int64_t* warp_sums) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  int64_t sum = value;
  for (int offset = 1; offset < 32; offset *= 2) {
    const int64_t left = __shfl_up_sync(0xffffffffu, sum, offset);
    sum += lane >= offset ? left : 0;
  }
  if (lane == 31) {
    warp_sums[warp] = sum;
  }
  __syncthreads();
  Scan scan{sum - value, 0};
  for (int w = 0; w < kWarps; ++w) {
    scan.before += w < warp ? warp_sums[w] : 0;
    scan.total += warp_sums[w];
  }
  __syncthreads();
  return scan;
}

// Grid: a block per row, kThreads tokens at a time: once to count, once to
// place every token behind those of its kind. Shared: one sum per warp.
template <typename Bits>
__global__ void __launch_bounds__(kThreads)
    mask_to_spans_kernel(MaskToSpansParams params) {
  SUBQUAD_SHARED(shared);
  auto* warp_sums = reinterpret_cast<int64_t*>(shared);
  const Bits significant = static_cast<Bits>(params.significant);
  const int64_t size = params.size;
  for (int64_t row = blockIdx.x; row < params.rows; row += gridDim.x) {
    const Bits* mask = static_cast<const Bits*>(params.mask) + row * size;
    int64_t* order = params.order + row * size;
    int64_t count = 0;
    for (int64_t j = threadIdx.x; j < size; j += kThreads) {
      count += (mask[j] & significant) == 0;
    }
    const int64_t length = scan_block(count, warp_sums).total;
    if (threadIdx.x == 0) {
      params.lengths[row] = length;
    }
    int64_t valid_before = 0; // among the tokens before `first`
    for (int64_t first = 0; first < size; first += kThreads) {
      const int64_t j = first + threadIdx.x;
      const bool valid = j < size && (mask[j] & significant) == 0;
      const Scan scan = scan_block(valid, warp_sums);
      const int64_t rank = valid_before + scan.before;
      if (j < size) {
        order[valid ? rank : length + j - rank] = j;
      }
      valid_before += scan.total;
    }
  }
}

} // namespace mask_to_spans

template <typename Launcher>
int launch_mask_to_spans(
    const Launcher& launch,
    const MaskToSpansParams& params) {
  using namespace mask_to_spans;
  const auto run = [&](void (*kernel)(MaskToSpansParams)) {
    return launch(
        kernel,
        dim3(cuda::grid_size(params.rows)),
        dim3(kThreads),
        kSharedBytes,
        params);
  };
  switch (params.element_size) {
    case 1:
      return run(mask_to_spans_kernel<uint8_t>);
    case 2:
      return run(mask_to_spans_kernel<uint16_t>);
    case 4:
      return run(mask_to_spans_kernel<uint32_t>);
    default:
      return run(mask_to_spans_kernel<uint64_t>);
  }
}

} // namespace subquad
