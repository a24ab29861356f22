#pragma once

// The functions of cuda/prim.cuh, CUDA's atomics and its dynamic shared memory.

#include <cmath>
#include <cstdint>

#include "block.h"
#include "half.h"
#include "shared_memory.h"

namespace emu {

void wait_async(int newest_groups);
void load_matrices(
    uint32_t (&r)[4],
    const void* row,
    bool transposed,
    const Site& site);
enum class HalfType { kFloat16, kBfloat16 };
void multiply_fragments(
    float (&c)[4],
    const uint32_t (&a)[4],
    const uint32_t (&b)[2],
    HalfType type,
    const Site& site);

} // namespace emu

#define SUBQUAD_SHARED(name) unsigned char* name = ::emu::shared_memory()

float atomicAdd(float* address, float value);
double atomicAdd(double* address, double value);
int atomicAdd(int* address, int value);
unsigned atomicAdd(unsigned* address, unsigned value);
unsigned long long atomicAdd(
    unsigned long long* address,
    unsigned long long value);

namespace subquad::cuda {

void ld128(void* registers, const void* address);
void st128(void* address, const void* registers);
void cp_async16(void* shared, const void* global, int bytes);
void cp_async_commit();

template <int N>
EMU_INLINE void cp_async_wait() {
  emu::wait_async(N);
}

EMU_INLINE void ldmatrix_x4(
    uint32_t (&r)[4],
    const void* shared_row,
    emu::Site site = emu::Site::current()) {
  emu::load_matrices(r, shared_row, false, site);
}

EMU_INLINE void ldmatrix_x4_trans(
    uint32_t (&r)[4],
    const void* shared_row,
    emu::Site site = emu::Site::current()) {
  emu::load_matrices(r, shared_row, true, site);
}

EMU_INLINE void mma_m16n8k16(
    float (&c)[4],
    const uint32_t (&a)[4],
    const uint32_t (&b)[2],
    __half,
    emu::Site site = emu::Site::current()) {
  emu::multiply_fragments(c, a, b, emu::HalfType::kFloat16, site);
}

EMU_INLINE void mma_m16n8k16(
    float (&c)[4],
    const uint32_t (&a)[4],
    const uint32_t (&b)[2],
    __nv_bfloat16,
    emu::Site site = emu::Site::current()) {
  emu::multiply_fragments(c, a, b, emu::HalfType::kBfloat16, site);
}

EMU_INLINE float exp2_approx(float x) {
  return std::exp2(x);
}

// Half turns less than the nearest whole one are exact.
template <typename T>
EMU_INLINE void sine_cosine_pi(T x, T& sine, T& cosine) {
  constexpr T kPi = T(3.14159265358979323846L);
  const T rest = std::remainder(x, T(2));
  const T quarters = std::nearbyint(2 * rest); // -2 .. 2
  const T angle = kPi * (rest - quarters / 2);
  const T s = std::sin(angle);
  const T c = std::cos(angle);
  const bool swapped = quarters == 1 || quarters == -1;
  const bool half = quarters == 2 || quarters == -2;
  sine = swapped ? quarters * c : half ? -s : s;
  cosine = swapped ? -quarters * s : half ? -c : c;
}

} // namespace subquad::cuda
