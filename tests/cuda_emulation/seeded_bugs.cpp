#include "seeded_bugs.h"

#include <cstring>

#include "cuda/prim.cuh"

namespace {

using namespace subquad::cuda;

constexpr unsigned kAll = 0xffffffffu;
constexpr int kThreads = 64;
constexpr int kBlocks = 3;
constexpr int kFloats = kThreads * kBlocks; // of input and output

// Every kernel: blocks of kThreads; its mistake is made when kBug.

__device__ int index() {
  return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

__device__ float* floats(unsigned char* memory) {
  return reinterpret_cast<float*>(memory);
}

template <bool kBug>
__global__ void missing_syncthreads(const float* in, float* out) {
  SUBQUAD_SHARED(memory);
  float* shared = floats(memory);
  const int t = threadIdx.x;
  shared[t] = in[index()];
  if (!kBug) {
    __syncthreads();
  }
  out[index()] = shared[kThreads - 1 - t];
}

template <bool kBug>
__global__ void write_after_read(const float* in, float* out) {
  SUBQUAD_SHARED(memory);
  float* shared = floats(memory);
  const int t = threadIdx.x;
  float sum = 0;
  for (int step = 0; step < 2; ++step) {
    shared[t] = in[index()] + static_cast<float>(step);
    __syncthreads();
    sum += shared[(t + 33) % kThreads];
    if (!kBug) {
      __syncthreads();
    }
  }
  out[index()] = sum;
}

template <bool kBug>
__global__ void missing_syncwarp(const float* in, float* out) {
  SUBQUAD_SHARED(memory);
  float* shared = floats(memory);
  const int t = threadIdx.x;
  shared[t] = in[index()];
  if (!kBug) {
    __syncwarp();
  }
  out[index()] = shared[t ^ 1];
}

// A warp's barrier where the block's is needed.
template <bool kBug>
__global__ void narrow_barrier(const float* in, float* out) {
  SUBQUAD_SHARED(memory);
  float* shared = floats(memory);
  const int t = threadIdx.x;
  shared[t] = in[index()];
  if (kBug) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  out[index()] = shared[t ^ 32];
}

struct Wide {
  float values[3];
};

__attribute__((noinline)) __device__ Wide widen(float value) {
  return {{value, 2 * value, 3 * value}};
}

__attribute__((noinline)) __device__ float narrow(Wide wide) {
  return wide.values[0] + wide.values[2];
}

// Structs that calls return into shared memory and take from it.
template <bool kBug>
__global__ void struct_by_value(const float* in, float* out) {
  SUBQUAD_SHARED(memory);
  Wide* shared = reinterpret_cast<Wide*>(memory);
  const int t = threadIdx.x;
  shared[t] = widen(in[index()]);
  if (!kBug) {
    __syncthreads();
  }
  out[index()] = narrow(shared[t ^ 32]);
}

// Halves of one word are two places: no race between their writers.
template <bool kBug>
__global__ void half_words(const float* in, float* out) {
  SUBQUAD_SHARED(memory);
  __half* shared = reinterpret_cast<__half*>(memory);
  const int t = threadIdx.x;
  shared[kBug ? t / 2 : t] = __half(in[index()]);
  __syncthreads();
  out[index()] = __half2float(shared[kBug ? t / 2 : t ^ 1]);
}

template <bool kBug>
__global__ void global_race(const float* in, float* out) {
  const int i = index();
  out[i] = in[i];
  if (!kBug) {
    __syncthreads();
  }
  const float other = out[i ^ 32];
  __syncthreads();
  out[i] = other;
}

template <bool kBug>
__global__ void two_blocks(const float* in, float* out) {
  float* place = &out[threadIdx.x];
  if (kBug) {
    *place = in[index()];
  } else {
    atomicAdd(place, in[index()]);
  }
}

template <bool kBug>
__global__ void early_return(const float* in, float* out) {
  const bool idle = threadIdx.x >= 40;
  if (kBug && idle) {
    return;
  }
  __syncthreads();
  if (!idle) {
    out[index()] = in[index()];
  }
}

template <bool kBug>
__global__ void barriers_on_a_line(const float* in, float* out) {
  const bool odd = kBug && threadIdx.x % 2 == 1;
  // clang-format off
  if (odd) { __syncthreads(); } else { __syncthreads(); }
  // clang-format on
  out[index()] = in[index()];
}

template <bool kBug>
__global__ void divergent_shuffle(const float* in, float* out) {
  const float value = in[index()];
  float other;
  if (kBug && threadIdx.x % 2 == 1) {
    other = __shfl_xor_sync(kAll, value, 1);
  } else {
    other = __shfl_xor_sync(kAll, value, 1);
  }
  out[index()] = other;
}

template <bool kBug>
__global__ void absent_lanes(const float* in, float* out) {
  const bool idle = threadIdx.x % 32 >= 16;
  if (idle) {
    return;
  }
  const float value = in[index()];
  out[index()] = __shfl_down_sync(kBug ? kAll : 0xffffu, value, 4, 16);
}

template <bool kBug>
__global__ void mask_without_caller(const float* in, float* out) {
  const float value = in[index()];
  out[index()] = __shfl_xor_sync(kBug ? 0xffffu : kAll, value, 1);
}

template <bool kBug>
__global__ void source_outside_mask(const float* in, float* out) {
  const float value = in[index()];
  if (threadIdx.x % 32 < 16) {
    out[index()] = __shfl_sync(0xffffu, value, kBug ? 20 : 10);
  }
}

template <bool kBug>
__global__ void deadlock(const float* in, float* out) {
  if (kBug && threadIdx.x % 2 == 1) {
    __syncthreads();
    __syncwarp();
  } else {
    __syncwarp();
    __syncthreads();
  }
  out[index()] = in[index()];
}

template <bool kBug>
__global__ void spinning(const float* in, float* out) {
  SUBQUAD_SHARED(memory);
  volatile float* flag = floats(memory);
  if (threadIdx.x == 0) {
    *flag = 0;
  }
  __syncthreads();
  if (kBug) {
    while (*flag == 0) {
    }
  }
  out[index()] = in[index()];
}

template <bool kBug>
__global__ void shared_read_outside(const float* in, float* out) {
  SUBQUAD_SHARED(memory);
  float* shared = floats(memory);
  shared[threadIdx.x] = in[index()];
  __syncthreads();
  out[index()] = shared[threadIdx.x + (kBug ? 1 : 0)];
}

template <bool kBug>
__global__ void shared_write_outside(const float* in, float* out) {
  SUBQUAD_SHARED(memory);
  float* shared = floats(memory) - (kBug ? 1 : 0);
  shared[threadIdx.x] = in[index()];
  out[index()] = shared[threadIdx.x];
}

template <bool kBug>
__global__ void global_read_outside(const float* in, float* out) {
  out[index()] = in[index() + (kBug ? 1 : 0)];
}

template <bool kBug>
__global__ void global_write_outside(const float* in, float* out) {
  out[index() - (kBug ? 1 : 0)] = in[index()];
}

template <bool kBug>
__global__ void read_only(const float* in, float* out) {
  if (kBug) {
    const_cast<float*>(in)[index()] = 0;
  }
  out[index()] = in[index()];
}

template <bool kBug>
__global__ void uninitialised(const float* in, float* out) {
  SUBQUAD_SHARED(memory);
  float* shared = floats(memory);
  if (!kBug || threadIdx.x != 7) {
    shared[threadIdx.x] = in[index()];
  }
  __syncthreads();
  out[index()] = shared[threadIdx.x];
}

template <bool kBug>
__global__ void misaligned_load(const float* in, float* out) {
  const int t = threadIdx.x;
  if (t < kThreads / 4 - 1) {
    float values[4];
    ld128(values, in + blockIdx.x * kThreads + 4 * t + (kBug ? 1 : 0));
    st128(out + blockIdx.x * kThreads + 4 * t, values);
  }
}

template <bool kBug>
__global__ void misaligned_store(const float* in, float* out) {
  SUBQUAD_SHARED(memory);
  const int t = threadIdx.x;
  if (t < 8) {
    float values[4] = {in[t], 1, 2, 3};
    st128(memory + 16 * t + (kBug ? 8 : 0), values);
    ld128(values, memory + 16 * t + (kBug ? 8 : 0));
    out[index()] = values[0];
  }
}

// g++ copies such a struct in one access, as nvcc does.
template <bool kBug>
__global__ void misaligned_vector(const float* in, float* out) {
  const int t = threadIdx.x;
  if (t < kThreads / 4 - 1) {
    const float* from = in + blockIdx.x * kThreads + 4 * t + (kBug ? 2 : 0);
    float* to = out + blockIdx.x * kThreads + 4 * t;
    *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(from);
  }
}

// Copies and fills that are one call and no single access.
template <bool kBug>
__global__ void memcpy_outside(const float* in, float* out) {
  if (threadIdx.x == 0) {
    const size_t floats = kFloats - blockIdx.x * kThreads;
    std::memcpy(
        out + index(), in + index(), sizeof(float) * (kBug ? floats + 1 : 64));
  }
}

template <bool kBug>
__global__ void memset_outside(const float* in, float* out) {
  SUBQUAD_SHARED(memory);
  if (threadIdx.x == 0) {
    memset(memory, 0, kThreads * sizeof(float) + (kBug ? 1 : 0));
  }
  __syncthreads();
  out[index()] = in[index()] + floats(memory)[threadIdx.x];
}

// The copies of cp.async, waited for as `kBug` says.
template <int kPending, bool kWait, bool kBarrier, bool kCommit>
__device__ void copy_through_shared(const float* in, float* out) {
  SUBQUAD_SHARED(memory);
  float* shared = floats(memory);
  const int t = threadIdx.x;
  if (t < kThreads / 4) {
    cp_async16(shared + 4 * t, in + blockIdx.x * kThreads + 4 * t, 12);
  }
  if (kCommit) {
    cp_async_commit();
  }
  if (kWait) {
    cp_async_wait<kPending>();
  }
  if (kBarrier) {
    __syncthreads();
  }
  out[index()] = shared[t];
}

template <bool kBug>
__global__ void missing_wait(const float* in, float* out) {
  copy_through_shared<0, !kBug, true, true>(in, out);
}

template <bool kBug>
__global__ void wait_for_fewer(const float* in, float* out) {
  copy_through_shared<kBug ? 1 : 0, true, true, true>(in, out);
}

template <bool kBug>
__global__ void missing_commit(const float* in, float* out) {
  copy_through_shared<0, true, true, !kBug>(in, out);
}

template <bool kBug>
__global__ void wait_without_barrier(const float* in, float* out) {
  copy_through_shared<0, true, !kBug, true>(in, out);
}

// A copy into memory that others may still read.
template <bool kBug>
__global__ void copy_too_early(const float* in, float* out) {
  SUBQUAD_SHARED(memory);
  float* shared = floats(memory);
  const int t = threadIdx.x;
  shared[t] = in[index()];
  __syncthreads();
  const float value = shared[(t + 32) % kThreads];
  if (!kBug) {
    __syncthreads();
  }
  if (t < kThreads / 4) {
    cp_async16(shared + 4 * t, in + blockIdx.x * kThreads + 4 * t, 16);
  }
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  out[index()] = value + shared[t];
}

template <bool kBug>
__global__ void matrix_of_global_memory(const float* in, float* out) {
  SUBQUAD_SHARED(memory);
  const int t = threadIdx.x;
  float* shared = floats(memory) + 4 * t;
  for (int i = 0; i < 4; ++i) {
    shared[i] = in[t];
  }
  __syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, kBug ? in : shared);
  out[index()] = static_cast<float>(r[0]);
}

template <bool kBug>
__global__ void copy_of_shared_memory(const float* in, float* out) {
  SUBQUAD_SHARED(memory);
  float* shared = floats(memory);
  if (threadIdx.x == 0) {
    const float* from = in;
    for (int i = 0; kBug && i < 4; ++i) {
      shared[4 + i] = in[i];
      from = shared + 4;
    }
    cp_async16(shared, from, 16);
    cp_async_commit();
    cp_async_wait<0>();
    out[index()] = shared[1];
  }
}

// ldmatrix reads rows that other lanes wrote.
template <bool kBug>
__global__ void matrix_without_barrier(const float* in, float* out) {
  SUBQUAD_SHARED(memory);
  const int t = threadIdx.x;
  __half* row = reinterpret_cast<__half*>(memory) + 8 * t;
  for (int i = 0; i < 8; ++i) {
    row[i] = __half(in[index()] + static_cast<float>(i));
  }
  if (!kBug) {
    __syncwarp();
  }
  uint32_t r[4];
  ldmatrix_x4(r, row);
  __half first;
  std::memcpy(&first, &r[3], sizeof first);
  out[index()] = __half2float(first);
}

template <
    void (*kMistaken)(const float*, float*),
    void (*kCorrect)(const float*, float*),
    size_t kSharedBytes>
int launch(bool mistaken, std::vector<float>& output) {
  const emu::Arena in("in", kFloats * sizeof(float), true);
  const emu::Arena out("out", kFloats * sizeof(float));
  float* values = static_cast<float*>(in.data());
  for (int i = 0; i < kFloats; ++i) {
    values[i] = static_cast<float>(i * 7 % 31);
  }
  output.assign(kFloats, 0.0f);
  std::memcpy(out.data(), output.data(), kFloats * sizeof(float));
  const int error = emu::Launcher{}(
      mistaken ? kMistaken : kCorrect,
      dim3(kBlocks),
      dim3(kThreads),
      kSharedBytes,
      values,
      static_cast<float*>(out.data()));
  std::memcpy(output.data(), out.data(), kFloats * sizeof(float));
  return error;
}

} // namespace

#define SEEDED_BUG(KERNEL, KIND, SHARED_BYTES)               \
  SeededBug {                                                \
    #KERNEL, emu::Kind::KIND,                                \
        &launch<&KERNEL<true>, &KERNEL<false>, SHARED_BYTES> \
  }

const std::vector<SeededBug>& seeded_bugs() {
  constexpr size_t kWords = kThreads * sizeof(float);
  static const std::vector<SeededBug> bugs = {
      SEEDED_BUG(missing_syncthreads, kRace, kWords),
      SEEDED_BUG(write_after_read, kRace, kWords),
      SEEDED_BUG(missing_syncwarp, kRace, kWords),
      SEEDED_BUG(narrow_barrier, kRace, kWords),
      SEEDED_BUG(struct_by_value, kRace, 3 * kWords),
      SEEDED_BUG(half_words, kRace, kWords),
      SEEDED_BUG(global_race, kRace, 0),
      SEEDED_BUG(two_blocks, kRace, 0),
      SEEDED_BUG(early_return, kBarrierDivergence, 0),
      SEEDED_BUG(barriers_on_a_line, kBarrierDivergence, 0),
      SEEDED_BUG(divergent_shuffle, kCollectiveDivergence, 0),
      SEEDED_BUG(absent_lanes, kCollectiveDivergence, 0),
      SEEDED_BUG(mask_without_caller, kCollectiveMask, 0),
      SEEDED_BUG(source_outside_mask, kCollectiveMask, 0),
      SEEDED_BUG(deadlock, kDeadlock, 0),
      SEEDED_BUG(spinning, kDeadlock, kWords),
      SEEDED_BUG(shared_read_outside, kOutOfBounds, kWords),
      SEEDED_BUG(shared_write_outside, kOutOfBounds, kWords),
      SEEDED_BUG(global_read_outside, kOutOfBounds, 0),
      SEEDED_BUG(global_write_outside, kOutOfBounds, 0),
      SEEDED_BUG(read_only, kReadOnly, 0),
      SEEDED_BUG(uninitialised, kUninitialised, kWords),
      SEEDED_BUG(misaligned_load, kMisaligned, 0),
      SEEDED_BUG(misaligned_store, kMisaligned, kWords),
      SEEDED_BUG(misaligned_vector, kMisaligned, 0),
      SEEDED_BUG(memcpy_outside, kOutOfBounds, 0),
      SEEDED_BUG(memset_outside, kOutOfBounds, kWords),
      SEEDED_BUG(matrix_of_global_memory, kOutOfBounds, 4 * kWords),
      SEEDED_BUG(copy_of_shared_memory, kOutOfBounds, kWords),
      SEEDED_BUG(missing_wait, kAsyncCopy, kWords),
      SEEDED_BUG(wait_for_fewer, kAsyncCopy, kWords),
      SEEDED_BUG(missing_commit, kAsyncCopy, kWords),
      SEEDED_BUG(wait_without_barrier, kRace, kWords),
      SEEDED_BUG(copy_too_early, kRace, kWords),
      SEEDED_BUG(matrix_without_barrier, kRace, 4 * kWords),
  };
  return bugs;
}
