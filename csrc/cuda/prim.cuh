#pragma once

// The hardware, as every kernel sees it. This is the only file that knows who
// compiles: nvcc gets the instructions, g++ gets the emulator of
// tests/cuda_emulation, which offers the same names and checks their rules.
//
// SUBQUAD_SHARED(name)  declares `unsigned char* name`, the block's dynamic
//     shared memory, aligned to 16 bytes. Kernels have no other.
// ld128, st128  one access of 16 bytes; the address is aligned to 16.
// cp_async16(shared, global, bytes)  starts a copy of 16 bytes, of which the
//     first `bytes` (0..16) come from global memory and the others are zero.
//     Both addresses are aligned to 16 and valid, also for bytes == 0.
// cp_async_commit()  closes a group of this thread's copies.
// cp_async_wait<N>()  all but the newest N groups of this thread are done;
// other
//     threads see them after the next barrier.
// ldmatrix_x4(r, row)  four 8x8 matrices of 16-bit elements: lane l passes row
//     l % 8 of matrix l / 8 and receives in r[i] elements 2 * (l % 4) and the
//     next of row l / 4 of matrix i. _trans: of the transposed matrices.
// mma_m16n8k16(c, a, b, type)  c += a b in float32, with g = lane / 4 and
//     t = 2 * (lane % 4): a[0..3] start at (row, column) (g, t), (g + 8, t),
//     (g, t + 8), (g + 8, t + 8) and hold two elements of a row; b[0..1] start
//     at (t, g), (t + 8, g) and hold two elements of a column; c[0..3] are
//     (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1).
// exp2_approx(x)  2^x within 2 ulp; 0 for -inf.
// sine_cosine_pi(x, sine, cosine)  of pi x.

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#define SUBQUAD_SHARED(name)                                             \
  extern __shared__ __align__(16) unsigned char subquad_shared_memory[]; \
  unsigned char* name = subquad_shared_memory

namespace subquad::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* address) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(address));
}

__device__ __forceinline__ void ld128(void* registers, const void* address) {
  const uint4 value = *static_cast<const uint4*>(address);
  memcpy(registers, &value, sizeof value);
}

__device__ __forceinline__ void st128(void* address, const void* registers) {
  uint4 value;
  memcpy(&value, registers, sizeof value);
  *static_cast<uint4*>(address) = value;
}

__device__ __forceinline__ void
cp_async16(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(
                   shared_address(shared)),
               "l"(__cvta_generic_to_global(global)),
               "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

__device__ __forceinline__ void ldmatrix_x4(
    uint32_t (&r)[4],
    const void* shared_row) {
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
      : "r"(shared_address(shared_row))
      : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(
    uint32_t (&r)[4],
    const void* shared_row) {
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
      : "r"(shared_address(shared_row))
      : "memory");
}

__device__ __forceinline__ void mma_m16n8k16(
    float (&c)[4],
    const uint32_t (&a)[4],
    const uint32_t (&b)[2],
    __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_m16n8k16(
    float (&c)[4],
    const uint32_t (&a)[4],
    const uint32_t (&b)[2],
    __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ void
sine_cosine_pi(float x, float& sine, float& cosine) {
  sincospif(x, &sine, &cosine);
}
__device__ __forceinline__ void
sine_cosine_pi(double x, double& sine, double& cosine) {
  sincospi(x, &sine, &cosine);
}

} // namespace subquad::cuda

#else

#include "emulator.h"

#endif
