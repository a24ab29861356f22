#pragma once

#include <type_traits>

#include "common/scalar_kind.h"
#include "cuda/prim.cuh"

// Elements in memory and what kernels compute with.
namespace subquad::cuda {

template <typename scalar_t>
struct Scalar {
  using acc_t = scalar_t;
  static constexpr bool kTensorCores = false;
};
template <>
struct Scalar<__half> {
  using acc_t = float;
  static constexpr bool kTensorCores = true;
};
template <>
struct Scalar<__nv_bfloat16> {
  using acc_t = float;
  static constexpr bool kTensorCores = true;
};

// The dtype of sums, of the log-sum-exp and of arithmetic between products.
template <typename scalar_t>
using acc_t = typename Scalar<scalar_t>::acc_t;

__device__ __forceinline__ float to_acc(float x) {
  return x;
}
__device__ __forceinline__ double to_acc(double x) {
  return x;
}
__device__ __forceinline__ float to_acc(__half x) {
  return __half2float(x);
}
__device__ __forceinline__ float to_acc(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <typename scalar_t>
__device__ __forceinline__ scalar_t from_acc(acc_t<scalar_t> x) {
  if constexpr (std::is_same_v<scalar_t, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<scalar_t, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// Elements of T in one access of 16 bytes.
template <typename T>
inline constexpr int kVectorWidth = 16 / sizeof(T);

// kWidth elements: one access of 16 bytes, or one by one.
template <int kWidth, typename T>
__device__ __forceinline__ void load(
    const T* address,
    acc_t<T> (&values)[kWidth]) {
  T registers[kWidth];
  if constexpr (kWidth * sizeof(T) == 16) {
    ld128(registers, address);
  } else {
    for (int i = 0; i < kWidth; ++i) {
      registers[i] = address[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    values[i] = to_acc(registers[i]);
  }
}

template <int kWidth, typename T>
__device__ __forceinline__ void store(
    const acc_t<T> (&values)[kWidth],
    T* address) {
  T registers[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    registers[i] = from_acc<T>(values[i]);
  }
  if constexpr (kWidth * sizeof(T) == 16) {
    st128(address, registers);
  } else {
    for (int i = 0; i < kWidth; ++i) {
      address[i] = registers[i];
    }
  }
}

// Sum over `lanes` neighbouring lanes (a power of two), in the same order on
// every one of them. The whole warp takes part.
template <typename T>
__device__ __forceinline__ T sum_lanes(T value, int lanes = 32) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

// Calls launch.template operator()<T>() for the element type.
template <typename Launch>
int dispatch_scalar(ScalarKind kind, const Launch& launch) {
  switch (kind) {
    case ScalarKind::kDouble:
      return launch.template operator()<double>();
    case ScalarKind::kFloat:
      return launch.template operator()<float>();
    case ScalarKind::kBFloat16:
      return launch.template operator()<__nv_bfloat16>();
    default:
      return launch.template operator()<__half>();
  }
}

} // namespace subquad::cuda
