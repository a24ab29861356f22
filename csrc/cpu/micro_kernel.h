#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cstdint>

#include "common/index.h"
#include "common/macros.h"

// Register tiles: the small matrix products and the exponential that the CPU
// kernels are made of. Included by units that are compiled once per instruction
// set, hence the inline namespace.
namespace subquad {
inline namespace CPU_CAPABILITY {

#if defined(_MSC_VER)
#define SUBQUAD_UNROLL
#else
#define SUBQUAD_UNROLL _Pragma("GCC unroll 16")
#endif

template <typename acc_t>
using Vec = at::vec::Vectorized<acc_t>;

// The elements of one vector register.
template <typename acc_t>
constexpr int64_t kLanes = Vec<acc_t>::size();

// The largest tile, rows x vectors: its sums, a row of operands and one
// broadcast fit the 32 registers of AVX-512 or the 16 of the others.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int64_t kTileRows = 8;
#else
constexpr int64_t kTileRows = 6;
#endif
constexpr int64_t kTileVectors = 2;

// Asks for `bytes` of memory that will be read soon.
inline void prefetch(const void* data, int64_t bytes) {
#if defined(__GNUC__)
  constexpr int64_t kCacheLine = 64;
  for (int64_t i = 0; i < bytes; i += kCacheLine) {
    __builtin_prefetch(static_cast<const char*>(data) + i);
  }
#else
  static_cast<void>(data);
  static_cast<void>(bytes);
#endif
}

template <typename acc_t>
int64_t round_to_lanes(int64_t count) {
  return ceil_divide(count, kLanes<acc_t>) * kLanes<acc_t>;
}

// c[r][v] = (accumulate ? c[r][v] : 0) + sum_k a[r, k] * b[k, v] for R rows and
// N vectors v. Strides in elements: a[r, k] lies at a + r * a_row + k * a_depth
// (so a transposed operand costs nothing), vector v of row k of b at
// b + k * b_depth + v * b_vector, and vector v of row r of c at
// c + r * c_row + v * kLanes. Every element is one chain of fused multiply-adds
// in the order of k, whatever R and N are: the same bits in every tiling.
template <typename acc_t, int R, int N>
inline void multiply_tile(
    int64_t depth,
    const acc_t* SUBQUAD_RESTRICT a,
    int64_t a_row,
    int64_t a_depth,
    const acc_t* SUBQUAD_RESTRICT b,
    int64_t b_depth,
    int64_t b_vector,
    acc_t* SUBQUAD_RESTRICT c,
    int64_t c_row,
    bool accumulate) {
  Vec<acc_t> sum[R][N];
  SUBQUAD_UNROLL
  for (int r = 0; r < R; ++r) {
    SUBQUAD_UNROLL
    for (int v = 0; v < N; ++v) {
      sum[r][v] = accumulate
          ? Vec<acc_t>::loadu(c + r * c_row + v * kLanes<acc_t>)
          : Vec<acc_t>(acc_t(0));
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec<acc_t> operand[N];
    SUBQUAD_UNROLL
    for (int v = 0; v < N; ++v) {
      operand[v] = Vec<acc_t>::loadu(b + v * b_vector);
    }
    SUBQUAD_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vec<acc_t> factor(a[r * a_row]);
      SUBQUAD_UNROLL
      for (int v = 0; v < N; ++v) {
        sum[r][v] = at::vec::fmadd(factor, operand[v], sum[r][v]);
      }
    }
    a += a_depth;
    b += b_depth;
  }
  SUBQUAD_UNROLL
  for (int r = 0; r < R; ++r) {
    SUBQUAD_UNROLL
    for (int v = 0; v < N; ++v) {
      sum[r][v].store(c + r * c_row + v * kLanes<acc_t>);
    }
  }
}

// The same for R rows and any number of vectors.
template <typename acc_t, int R>
inline void multiply_rows(
    int64_t vectors,
    int64_t depth,
    const acc_t* a,
    int64_t a_row,
    int64_t a_depth,
    const acc_t* b,
    int64_t b_depth,
    int64_t b_vector,
    acc_t* c,
    int64_t c_row,
    bool accumulate) {
  // Few rows leave registers for more vectors, which hide the latency.
  constexpr int kWide = R == 1 ? 8 : R == 2 ? 4 : kTileVectors;
  int64_t v = 0;
  for (; v + kWide <= vectors; v += kWide) {
    multiply_tile<acc_t, R, kWide>(
        depth,
        a,
        a_row,
        a_depth,
        b + v * b_vector,
        b_depth,
        b_vector,
        c + v * kLanes<acc_t>,
        c_row,
        accumulate);
  }
  for (; v < vectors; ++v) {
    multiply_tile<acc_t, R, 1>(
        depth,
        a,
        a_row,
        a_depth,
        b + v * b_vector,
        b_depth,
        b_vector,
        c + v * kLanes<acc_t>,
        c_row,
        accumulate);
  }
}

// The same for any number of rows and vectors.
template <typename acc_t>
inline void multiply(
    int64_t rows,
    int64_t vectors,
    int64_t depth,
    const acc_t* a,
    int64_t a_row,
    int64_t a_depth,
    const acc_t* b,
    int64_t b_depth,
    int64_t b_vector,
    acc_t* c,
    int64_t c_row,
    bool accumulate) {
  while (rows > 0) {
    const int64_t some = min_index(rows, kTileRows);
    const auto run = [&](auto tile) {
      tile(
          vectors,
          depth,
          a,
          a_row,
          a_depth,
          b,
          b_depth,
          b_vector,
          c,
          c_row,
          accumulate);
    };
    switch (some) {
      case 1:
        run(multiply_rows<acc_t, 1>);
        break;
      case 2:
        run(multiply_rows<acc_t, 2>);
        break;
      case 3:
        run(multiply_rows<acc_t, 3>);
        break;
      case 4:
        run(multiply_rows<acc_t, 4>);
        break;
      case 5:
        run(multiply_rows<acc_t, 5>);
        break;
#if defined(CPU_CAPABILITY_AVX512)
      case 6:
        run(multiply_rows<acc_t, 6>);
        break;
      case 7:
        run(multiply_rows<acc_t, 7>);
        break;
#endif
      default:
        run(multiply_rows<acc_t, kTileRows>);
    }
    rows -= some;
    a += some * a_row;
    c += some * c_row;
  }
}

// exp(x) for x <= 88. NaN stays NaN; -inf, and all below -87.7, gives exactly
// 0. Relative error 2e-7 for float.
inline Vec<float> exponential(const Vec<float>& x) {
  // exp(x) = 2^n exp(r) with |r| <= ln(2) / 2. Adding 1.5 * 2^23 rounds to an
  // integer that then sits in the low bits of the sum, beside the exponent
  // bias; ln(2) is split in two so that n * ln(2) stays exact.
  const Vec<float> magic(12582912.0f + 127.0f);
  const Vec<float> bounded = at::vec::clamp_min(x, Vec<float>(-88.0f));
  const Vec<float> shifted =
      at::vec::fmadd(bounded, Vec<float>(1.44269504f), magic);
  const Vec<float> n = shifted - magic;
  Vec<float> r = at::vec::fmadd(n, Vec<float>(-0.693359375f), bounded);
  r = at::vec::fmadd(n, Vec<float>(2.12194440e-4f), r);
  // Minimax in the relative error, 1e-7.
  Vec<float> y(0.00829027220607f);
  y = at::vec::fmadd(y, r, Vec<float>(0.0418981611729f));
  y = at::vec::fmadd(y, r, Vec<float>(0.166676387191f));
  y = at::vec::fmadd(y, r, Vec<float>(0.499991476536f));
  y = at::vec::fmadd(y, r, Vec<float>(0.999999701977f));
  y = at::vec::fmadd(y, r, Vec<float>(1.0f));
  // n >= -127 here, and a biased exponent of 0 makes the factor 0.
  const auto power = at::vec::cast<int32_t>(shifted) << Vec<int32_t>(23);
  return y * at::vec::cast<float>(power);
}

inline Vec<double> exponential(const Vec<double>& x) {
  return x.exp();
}

template <typename acc_t>
inline acc_t reduce_max(const Vec<acc_t>& x) {
  return at::vec::vec_reduce_all<acc_t>(
      [](const Vec<acc_t>& a, const Vec<acc_t>& b) {
        return at::vec::maximum(a, b);
      },
      x);
}

template <typename acc_t>
inline acc_t reduce_sum(const Vec<acc_t>& x) {
  return at::vec::vec_reduce_all<acc_t>(
      [](const Vec<acc_t>& a, const Vec<acc_t>& b) { return a + b; }, x);
}

} // namespace CPU_CAPABILITY
} // namespace subquad
