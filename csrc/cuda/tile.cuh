#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/scalar.cuh"

// Matrix products of one warp on tiles in shared memory, and the staging of
// such tiles. A warp owns 16 rows of a result. All dtypes use one layout of the
// accumulators, that of the tensor cores' m16n8k16: lane = 4 * g + t holds, of
// every 8 columns, columns 2 t and 2 t + 1 of rows g (elements 0, 1) and g + 8
// (elements 2, 3). So what happens between two products is written once;
// bfloat16 and float16 multiply on tensor cores, float and double with FMAs.
//
// Tiles are row-major. Rows are padded to a stride of an odd multiple of 16
// bytes, so that eight rows read at once lie in different banks.
namespace subquad::cuda {

constexpr int kWarpSize = 32;
constexpr int kWarpRows = 16;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ float exponential(float x) {
  constexpr float kLog2E = 1.44269504088896340736f;
  return exp2f(x * kLog2E);
}
__device__ __forceinline__ double exponential(double x) {
  return exp(x);
}
__device__ __forceinline__ float fused(float a, float b, float c) {
  return fmaf(a, b, c);
}
__device__ __forceinline__ double fused(double a, double b, double c) {
  return fma(a, b, c);
}
__device__ __forceinline__ float logarithm(float x) {
  return logf(x);
}
__device__ __forceinline__ double logarithm(double x) {
  return log(x);
}
// By half turns: the slow paths of sin and cos for large x need local memory.
template <typename T>
__device__ __forceinline__ void sine_cosine(T x, T& sine, T& cosine) {
  constexpr double kPi = 3.14159265358979323846;
  constexpr T kInverse = static_cast<T>(1 / kPi);
  // 1 / pi less what kInverse has of it.
  constexpr T kRest = sizeof(T) == 4
      ? static_cast<T>(
            1 / kPi - static_cast<double>(static_cast<float>(1 / kPi)))
      : static_cast<T>(-1.9678676675182486e-17);
  const T turns = x * kInverse;
  const T rest = static_cast<T>(kPi) * (fused(x, kInverse, -turns) + x * kRest);
  T s, c;
  sine_cosine_pi(turns, s, c);
  sine = s + rest * c;
  cosine = c - rest * s;
}
// NaN where one of the two is.
template <typename T>
__device__ __forceinline__ T larger_or_nan(T a, T b) {
  return a > b || a != a ? a : b;
}
// Not NaN where one of the two is a number.
__device__ __forceinline__ float larger(float a, float b) {
  return fmaxf(a, b);
}
__device__ __forceinline__ double larger(double a, double b) {
  return fmax(a, b);
}
// Neither NaN nor infinite: both differ from themselves by NaN.
template <typename T>
__device__ __forceinline__ bool is_finite(T x) {
  return x - x == T(0);
}

// 16 rows x 8 kTiles columns of a warp's results.
template <typename acc, int kTiles>
struct Fragment {
  acc v[kTiles][4];

  __device__ __forceinline__ void zero() {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        v[n][e] = acc(0);
      }
    }
  }
};

// Place of an element of a fragment: row in the warp's 16, column.
__device__ __forceinline__ int lane_index() {
  return static_cast<int>(threadIdx.x) % kWarpSize;
}
__device__ __forceinline__ int fragment_row(int lane, int element) {
  return lane / 4 + (element / 2) * 8;
}
__device__ __forceinline__ int
fragment_column(int lane, int tile, int element) {
  return tile * 8 + (lane % 4) * 2 + element % 2;
}

// Columns of a padded tile, and the stride of its rows, in elements.
SUBQUAD_HOST_DEVICE inline int padded_width(int64_t width) {
  return static_cast<int>((width + 15) / 16 * 16);
}
template <typename scalar_t>
SUBQUAD_HOST_DEVICE inline int tile_stride(int64_t width) {
  return padded_width(width) + 16 / static_cast<int>(sizeof(scalar_t));
}

// Calls f(tile, elements) for the 8-column tiles of a fragment one after the
// other. Registers have no index at run time: the tiles move through the first
// place instead, so that long code is there once and not once per element.
template <typename acc, int kTiles, typename F>
__device__ __forceinline__ void for_each_tile(
    Fragment<acc, kTiles>& fragment,
    F f) {
#pragma unroll 1
  for (int n = 0; n < kTiles; ++n) {
    f(n, fragment.v[0]);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const acc first = fragment.v[0][e];
#pragma unroll
      for (int m = 0; m + 1 < kTiles; ++m) {
        fragment.v[m][e] = fragment.v[m + 1][e];
      }
      fragment.v[kTiles - 1][e] = first;
    }
  }
}

template <typename scalar_t>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  const scalar_t pair[2] = {from_acc<scalar_t>(low), from_acc<scalar_t>(high)};
  uint32_t packed;
  memcpy(&packed, pair, sizeof(packed));
  return packed;
}

// c += a . b^T; a: the warp's 16 rows, b: 8 kTiles rows, both `depth` columns
// (a multiple of 16) of shared memory.
template <typename scalar_t, int kTiles>
__device__ __forceinline__ void multiply_transposed(
    Fragment<acc_t<scalar_t>, kTiles>& c,
    const scalar_t* a, // [16, depth]
    int a_stride,
    const scalar_t* b, // [8 kTiles, depth]
    int b_stride,
    int depth) {
  const int lane = lane_index();
  if constexpr (Scalar<scalar_t>::kTensorCores) {
    static_assert(kTiles % 2 == 0);
    const scalar_t* a_lane = a + (lane % 16) * a_stride + (lane / 16) * 8;
    const scalar_t* b_lane =
        b + (lane % 8 + (lane / 16) * 8) * b_stride + (lane / 8 % 2) * 8;
#pragma unroll 1
    for (int k = 0; k < depth; k += 16) {
      uint32_t left[4];
      ldmatrix_x4(left, a_lane + k);
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        uint32_t right[4];
        ldmatrix_x4(right, b_lane + n * 8 * b_stride + k);
        mma_m16n8k16(c.v[n], left, {right[0], right[1]}, scalar_t());
        mma_m16n8k16(c.v[n + 1], left, {right[2], right[3]}, scalar_t());
      }
    }
  } else {
    constexpr int kVector = 16 / sizeof(scalar_t);
    const scalar_t* a_lane = a + (lane / 4) * a_stride;
    const scalar_t* b_lane = b + (lane % 4) * 2 * b_stride;
#pragma unroll 1
    for (int k = 0; k < depth; k += kVector) {
      scalar_t low[kVector], high[kVector];
      ld128(low, a_lane + k);
      ld128(high, a_lane + 8 * a_stride + k);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          scalar_t right[kVector];
          ld128(right, b_lane + (n * 8 + e) * b_stride + k);
#pragma unroll
          for (int i = 0; i < kVector; ++i) {
            c.v[n][e] += low[i] * right[i];
            c.v[n][e + 2] += high[i] * right[i];
          }
        }
      }
    }
  }
}

// c += a . b; a: a fragment, rounded to scalar_t for tensor cores, b: 8 kDepth
// rows of shared memory, of which no column from padded_width(columns) on is
// read.
template <typename scalar_t, int kDepth, int kTiles>
__device__ __forceinline__ void multiply(
    Fragment<acc_t<scalar_t>, kTiles>& c,
    const Fragment<acc_t<scalar_t>, kDepth>& a,
    const scalar_t* b, // [8 kDepth, 8 kTiles]
    int b_stride,
    int columns = 8 * kTiles) {
  const int lane = lane_index();
  if constexpr (Scalar<scalar_t>::kTensorCores) {
    static_assert(kDepth % 2 == 0 && kTiles % 2 == 0);
    const scalar_t* b_lane = b + (lane % 16) * b_stride + (lane / 16) * 8;
#pragma unroll
    for (int k = 0; k < kDepth; k += 2) {
      const uint32_t left[4] = {
          pack<scalar_t>(a.v[k][0], a.v[k][1]),
          pack<scalar_t>(a.v[k][2], a.v[k][3]),
          pack<scalar_t>(a.v[k + 1][0], a.v[k + 1][1]),
          pack<scalar_t>(a.v[k + 1][2], a.v[k + 1][3])};
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        if (n * 8 >= columns) {
          break;
        }
        uint32_t right[4];
        ldmatrix_x4_trans(right, b_lane + k * 8 * b_stride + n * 8);
        mma_m16n8k16(c.v[n], left, {right[0], right[1]}, scalar_t());
        mma_m16n8k16(c.v[n + 1], left, {right[2], right[3]}, scalar_t());
      }
    }
  } else {
    const scalar_t* b_lane = b + (lane % 4) * 2;
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      // The four lanes of a row hold two of the eight factors each.
      for (int source = 0; source < 4; ++source) {
        const int from = lane / 4 * 4 + source;
        scalar_t left[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          left[e] = __shfl_sync(kAllLanes, a.v[k][e], from);
        }
        const scalar_t* row = b_lane + (k * 8 + source * 2) * b_stride;
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          if (n * 8 >= columns) {
            break;
          }
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const scalar_t first = row[n * 8 + e];
            const scalar_t second = row[b_stride + n * 8 + e];
            c.v[n][e] += left[0] * first;
            c.v[n][e] += left[1] * second;
            c.v[n][e + 2] += left[2] * first;
            c.v[n][e + 2] += left[3] * second;
          }
        }
      }
    }
  }
}

// c += a . b for tiles of shared memory; a: the warp's 16 rows of `depth`
// columns (a multiple of 16), or with kTransposed its 16 columns of `depth`
// rows; b: `depth` rows, of which no column from padded_width(columns) on is
// read.
template <bool kTransposed, typename scalar_t, int kTiles>
__device__ __forceinline__ void multiply_tiles(
    Fragment<acc_t<scalar_t>, kTiles>& c,
    const scalar_t* a, // [16, depth] or [depth, 16]
    int a_stride,
    const scalar_t* b, // [depth, 8 kTiles]
    int b_stride,
    int depth,
    int columns) {
  const int lane = lane_index();
  if constexpr (Scalar<scalar_t>::kTensorCores) {
    static_assert(kTiles % 2 == 0);
    const scalar_t* a_lane = kTransposed
        ? a + (lane % 8 + (lane / 16) * 8) * a_stride + (lane / 8 % 2) * 8
        : a + (lane % 16) * a_stride + (lane / 16) * 8;
    const scalar_t* b_lane = b + (lane % 16) * b_stride + (lane / 16) * 8;
#pragma unroll 1
    for (int k = 0; k < depth; k += 16) {
      uint32_t left[4];
      if constexpr (kTransposed) {
        ldmatrix_x4_trans(left, a_lane + k * a_stride);
      } else {
        ldmatrix_x4(left, a_lane + k);
      }
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        if (n * 8 >= columns) {
          break;
        }
        uint32_t right[4];
        ldmatrix_x4_trans(right, b_lane + k * b_stride + n * 8);
        mma_m16n8k16(c.v[n], left, {right[0], right[1]}, scalar_t());
        mma_m16n8k16(c.v[n + 1], left, {right[2], right[3]}, scalar_t());
      }
    }
  } else {
    const int row_step = kTransposed ? 1 : a_stride;
    const int depth_step = kTransposed ? a_stride : 1;
    const scalar_t* a_lane = a + lane / 4 * row_step;
    const scalar_t* b_lane = b + (lane % 4) * 2;
#pragma unroll 2
    for (int k = 0; k < depth; ++k) {
      const scalar_t low = a_lane[k * depth_step];
      const scalar_t high = a_lane[k * depth_step + 8 * row_step];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        if (n * 8 >= columns) {
          break;
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const scalar_t right = b_lane[k * b_stride + n * 8 + e];
          c.v[n][e] += low * right;
          c.v[n][e + 2] += high * right;
        }
      }
    }
  }
}

// c += a . b for one row b of global memory, of which only those rows of the
// result get a share that see it: `seen[0]` for the lane's row g, `seen[1]` for
// g + 8. Zero times NaN is NaN, so a row with NaN or infinity can't go through
// a product with weights of zero.
template <typename scalar_t, int kDepth, int kTiles>
__device__ __forceinline__ void multiply_row(
    Fragment<acc_t<scalar_t>, kTiles>& c,
    const Fragment<acc_t<scalar_t>, kDepth>& a,
    int row, // column of a
    const scalar_t* b,
    int columns, // of b that exist
    const bool (&seen)[2]) {
  const int lane = lane_index();
  const int from = lane / 4 * 4 + row % 8 / 2;
  acc_t<scalar_t> left[2] = {0, 0};
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const acc_t<scalar_t> even =
          __shfl_sync(kAllLanes, a.v[k][2 * half], from);
      const acc_t<scalar_t> odd =
          __shfl_sync(kAllLanes, a.v[k][2 * half + 1], from);
      if (k == row / 8) {
        left[half] = row % 2 == 0 ? even : odd;
      }
    }
  }
  for_each_tile(c, [&](int n, acc_t<scalar_t>(&v)[4]) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = fragment_column(lane, n, e);
      if (column < columns) {
        const acc_t<scalar_t> right = to_acc(b[column]);
        if (seen[0]) {
          v[e] += left[0] * right;
        }
        if (seen[1]) {
          v[e + 2] += left[1] * right;
        }
      }
    }
  });
}

// Over the four lanes that hold a row of a fragment.
template <typename T>
__device__ __forceinline__ T row_max(T x) {
  x = larger(x, __shfl_xor_sync(kAllLanes, x, 1));
  return larger(x, __shfl_xor_sync(kAllLanes, x, 2));
}
template <typename T>
__device__ __forceinline__ T row_sum(T x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

// Copies `rows` rows of `width` elements to shared memory, all threads of the
// block together; padding columns and rows without a source become zero.
// `row_of(r)` gives the address of row r or null. With `vectors` every address
// is a multiple of 16 bytes, and so is the size of a row: the copy is
// asynchronous then, and belongs to the next committed group. `tensor` is any
// valid address of the source.
template <typename scalar_t, typename RowOf>
__device__ __forceinline__ void stage_rows(
    scalar_t* tile,
    int stride,
    int rows,
    int width,
    bool vectors,
    const void* tensor,
    RowOf row_of) {
  constexpr int kVector = 16 / sizeof(scalar_t);
  const int padded = padded_width(width);
  const int pieces = vectors ? padded / kVector : padded;
  int shift = 0; // 2^shift threads share a row
  while ((1 << shift) < pieces) {
    ++shift;
  }
  for (int i = static_cast<int>(threadIdx.x); i < rows << shift;
       i += static_cast<int>(blockDim.x)) {
    const int row = i >> shift;
    const int piece = i & ((1 << shift) - 1);
    if (piece >= pieces) {
      continue;
    }
    const scalar_t* source = row_of(row);
    scalar_t* target = tile + row * stride;
    if (vectors) {
      const int column = piece * kVector;
      const bool inside = source != nullptr && column < width;
      cp_async16(
          target + column, inside ? source + column : tensor, inside ? 16 : 0);
    } else {
      target[piece] = source != nullptr && piece < width
          ? source[piece]
          : from_acc<scalar_t>(acc_t<scalar_t>(0));
    }
  }
}

// Whether row_of may be staged with vectors.
template <typename scalar_t>
inline bool
takes_vectors(const void* data, const Strides& stride, int64_t width) {
  constexpr int64_t kVector = 16 / sizeof(scalar_t);
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
      stride.batch % kVector == 0 && stride.head % kVector == 0 &&
      stride.row % kVector == 0 && width % kVector == 0;
}

// Sets the rows of a staged tile that hold NaN or infinity to zero and marks
// them in `marks`, all threads of the block together; needs a barrier before
// and after.
template <typename scalar_t>
__device__ __forceinline__ void clear_nonfinite_rows(
    scalar_t* tile,
    int stride,
    int rows,
    int width,
    int* marks) {
  for (int row = static_cast<int>(threadIdx.x); row < rows;
       row += static_cast<int>(blockDim.x)) {
    bool finite = true;
    for (int column = 0; column < width; ++column) {
      finite = finite && is_finite(to_acc(tile[row * stride + column]));
    }
    marks[row] = finite ? 0 : 1;
    for (int column = 0; !finite && column < width; ++column) {
      tile[row * stride + column] = from_acc<scalar_t>(acc_t<scalar_t>(0));
    }
  }
}

} // namespace subquad::cuda
