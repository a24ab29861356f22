#pragma once

#include "ops/random_features/kernel_tile.cuh"

// From the values of single tokens to those of whole rows: a block per row and
// head, all of whose loops end together. Sums and maxima are formed in an order
// that does not depend on anything but the row's length.
namespace subquad::random_features {

constexpr int kScanThreads = 256;
constexpr int kScanWarps = kScanThreads / kWarpSize;

template <typename T>
__device__ T no_maximum() {
  return -std::numeric_limits<T>::infinity();
}

// A sum that begins anew at some elements.
template <typename T>
struct Run {
  T sum;
  int fresh; // began within what has been combined

  __device__ Run operator+(const Run& next) const {
    return {next.fresh ? next.sum : sum + next.sum, fresh | next.fresh};
  }
};

template <typename T>
__device__ T up(T value, int offset) {
  return __shfl_up_sync(kAllLanes, value, offset);
}
template <typename T>
__device__ Run<T> up(Run<T> run, int offset) {
  return {up(run.sum, offset), up(run.fresh, offset)};
}

// Combines the values of all threads before and including this one; `all`
// becomes that of the whole block. `warps` has room for a value per warp. The
// first barrier orders the warps' values before their readers, the second the
// readers before the next scan.
template <typename V, typename Combine>
__device__ V scan_block(V value, V* warps, V& all, const Combine& combine) {
  const int lane = lane_index();
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const V before = up(value, offset);
    if (lane >= offset) {
      value = combine(before, value);
    }
  }
  if (lane == kWarpSize - 1) {
    warps[warp] = value;
  }
  __syncthreads();
  V before = warps[0];
  all = before;
  for (int w = 1; w < kScanWarps; ++w) {
    if (w == warp) {
      before = all;
    }
    all = combine(all, warps[w]);
  }
  if (warp > 0) {
    value = combine(before, value);
  }
  __syncthreads();
  return value;
}

// In: log_scale of single tokens. Out: the maximum of the row, or up to the
// token. Grid: rows * heads. Shared: a value per warp.
template <typename acc>
__global__ void __launch_bounds__(kScanThreads)
    random_features_maximum_kernel(RandomFeaturesParams params) {
  SUBQUAD_SHARED(shared);
  acc* warps = reinterpret_cast<acc*>(shared);
  acc* log_scale = static_cast<acc*>(params.log_scale);
  const auto larger = [](acc a, acc b) { return larger_or_nan(a, b); };
  for (int64_t n = blockIdx.x; n < params.rows * params.heads; n += gridDim.x) {
    const Head at(params, n / params.heads, n % params.heads);
    const int64_t length = at.tokens.span.length;
    acc top = params.initial_log_scale == nullptr
        ? no_maximum<acc>()
        : static_cast<const acc*>(params.initial_log_scale)[n];
    acc all;
    if (params.stabilizer == Stabilizer::kRow) {
      acc own = top;
      for (int64_t i = threadIdx.x; i < length; i += kScanThreads) {
        own = larger(own, log_scale[at.line(params, at.tokens.token(i))]);
      }
      scan_block(own, warps, all, larger);
      for (int64_t i = threadIdx.x; i < length; i += kScanThreads) {
        log_scale[at.line(params, at.tokens.token(i))] = all;
      }
      continue;
    }
    for (int64_t first = 0; first < length; first += kScanThreads) {
      const int64_t i = first + threadIdx.x;
      acc* value = i < length ? log_scale + at.line(params, at.tokens.token(i))
                              : nullptr;
      acc own = value == nullptr ? no_maximum<acc>() : *value;
      own = larger(top, scan_block(own, warps, all, larger));
      top = larger(top, all);
      if (value != nullptr) {
        *value = own;
      }
    }
  }
}

// In: the gradient with respect to every token's m, and how many features (or
// norms) of the token attain m. Out: what each of those gets. Grid and shared
// memory as above.
template <typename acc>
__global__ void __launch_bounds__(kScanThreads)
    random_features_backward_maximum_kernel(
        RandomFeaturesParams params,
        acc* share,      // [B, H, L]
        const int* ties, // [B, H, L]
        acc* grad_initial) {
  SUBQUAD_SHARED(shared);
  auto* sums = reinterpret_cast<Run<acc>*>(shared);
  const auto* log_scale = static_cast<const acc*>(params.log_scale);
  const auto* initial = static_cast<const acc*>(params.initial_log_scale);
  const auto add = [](const Run<acc>& a, const Run<acc>& b) { return a + b; };
  for (int64_t n = blockIdx.x; n < params.rows * params.heads; n += gridDim.x) {
    const Head at(params, n / params.heads, n % params.heads);
    const int64_t length = at.tokens.span.length;
    const auto line = [&](int64_t i) {
      return at.line(params, at.tokens.token(i));
    };
    // The initial value takes part in a maximum that it attains.
    const auto attained_before = [&](int64_t i) {
      return initial != nullptr && initial[n] == log_scale[line(i)] ? 1 : 0;
    };
    acc grad_before = 0;
    Run<acc> all{0, 0};
    if (params.stabilizer == Stabilizer::kToken) {
      acc own = 0;
      for (int64_t i = threadIdx.x; i < length; i += kScanThreads) {
        const int before = attained_before(i);
        const int64_t at_line = line(i);
        const acc each = share[at_line] /
            static_cast<acc>(max_index(ties[at_line] + before, 1));
        share[at_line] = each;
        own += before * each;
      }
      scan_block(Run<acc>{own, 0}, sums, all, add);
      grad_before = all.sum;
    } else if (params.stabilizer == Stabilizer::kRow) {
      acc own = 0;
      int64_t count = 0;
      for (int64_t i = threadIdx.x; i < length; i += kScanThreads) {
        own += share[line(i)];
        count += ties[line(i)];
      }
      scan_block(Run<acc>{own, 0}, sums, all, add);
      auto* counts = reinterpret_cast<int64_t*>(shared);
      int64_t total;
      scan_block(
          count, counts, total, [](int64_t a, int64_t b) { return a + b; });
      const int before = length > 0 ? attained_before(0) : 0;
      const acc each = all.sum / static_cast<acc>(max_index(total + before, 1));
      for (int64_t i = threadIdx.x; i < length; i += kScanThreads) {
        share[line(i)] = each;
      }
      grad_before = before * each;
    } else {
      // From the last token on: a sum per token that attains m, over those
      // that follow until the next one does. Equal values are the later
      // token's.
      Run<acc> following{0, 0};
      for (int64_t first = 0; first < length; first += kScanThreads) {
        const int64_t i = length - 1 - first - threadIdx.x;
        const bool valid = i >= 0;
        const int fresh =
            valid && i + 1 < length && ties[line(i + 1)] > 0 ? 1 : 0;
        Run<acc> own{valid ? share[line(i)] : acc(0), fresh};
        own = following + scan_block(own, sums, all, add);
        following = following + all;
        if (valid) {
          const int tied = ties[line(i)];
          share[line(i)] = tied > 0 ? own.sum / static_cast<acc>(tied) : acc(0);
        }
      }
      grad_before = length > 0 && ties[line(0)] == 0 ? following.sum : acc(0);
    }
    if (grad_initial != nullptr && threadIdx.x == 0) {
      grad_initial[n] = grad_before;
    }
  }
}

} // namespace subquad::random_features
