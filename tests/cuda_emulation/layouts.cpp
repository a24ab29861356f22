#include "layouts.h"

#include <cstring>

#include "cuda/prim.cuh"

namespace {

using namespace subquad::cuda;

template <class T>
__device__ uint32_t pair(T first, T second) {
  uint32_t word;
  const T both[2] = {first, second};
  std::memcpy(&word, both, sizeof word);
  return word;
}

template <class T>
__device__ void store(const float (&product)[4], float* c) {
  const int g = threadIdx.x / 4;
  const int t = 2 * (threadIdx.x % 4);
  c[8 * g + t] = product[0];
  c[8 * g + t + 1] = product[1];
  c[8 * (g + 8) + t] = product[2];
  c[8 * (g + 8) + t + 1] = product[3];
}

// Element by element, after the figures of the PTX manual, section "Matrix
// Fragments for mma.m16n8k16 with floating point type".
template <class T>
__global__ void product_kernel(const T* a, const T* b, float* c) {
  const int group = threadIdx.x >> 2;
  const int in_group = threadIdx.x % 4;
  uint32_t fragment_a[4];
  uint32_t fragment_b[2];
  for (int word = 0; word < 4; ++word) {
    T elements[2];
    for (int half = 0; half < 2; ++half) {
      const int i = 2 * word + half;
      const bool upper = (0 <= i && i < 2) || (4 <= i && i < 6);
      const int row = upper ? group : group + 8;
      const int column =
          i < 4 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8;
      elements[half] = a[16 * row + column];
    }
    fragment_a[word] = pair(elements[0], elements[1]);
  }
  for (int word = 0; word < 2; ++word) {
    T elements[2];
    for (int half = 0; half < 2; ++half) {
      const int i = 2 * word + half;
      const int row =
          i < 2 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8;
      elements[half] = b[8 * row + group];
    }
    fragment_b[word] = pair(elements[0], elements[1]);
  }
  float product[4] = {};
  mma_m16n8k16(product, fragment_a, fragment_b, T());
  store<T>(product, c);
}

// Both operands row-major in shared memory.
template <class T>
__global__ void ldmatrix_product_kernel(const T* a, const T* b, float* c) {
  SUBQUAD_SHARED(memory);
  T* shared_a = reinterpret_cast<T*>(memory);
  T* shared_b = shared_a + 16 * 16;
  const int lane = threadIdx.x;
  cp_async16(shared_a + 8 * lane, a + 8 * lane, 16);
  cp_async16(shared_b + 8 * lane, b + 8 * (lane % 16), lane < 16 ? 16 : 0);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  const int row = lane % 16;
  uint32_t fragment_a[4];
  ldmatrix_x4(fragment_a, shared_a + 16 * row + 8 * (lane / 16));
  uint32_t columns[4];
  ldmatrix_x4_trans(columns, shared_b + 8 * lane);
  const uint32_t fragment_b[2] = {columns[0], columns[1]};
  float product[4] = {};
  mma_m16n8k16(product, fragment_a, fragment_b, T());
  store<T>(product, c);
}

template <class T>
std::vector<float> product(
    const std::vector<float>& a,
    const std::vector<float>& b,
    bool ldmatrix) {
  const emu::Arena device_a("a", a.size() * sizeof(T), true);
  const emu::Arena device_b("b", b.size() * sizeof(T), true);
  const emu::Arena device_c("c", 16 * 8 * sizeof(float));
  T* half_a = static_cast<T*>(device_a.data());
  T* half_b = static_cast<T*>(device_b.data());
  for (size_t i = 0; i < a.size(); ++i) {
    half_a[i] = T(a[i]);
  }
  for (size_t i = 0; i < b.size(); ++i) {
    half_b[i] = T(b[i]);
  }
  const size_t shared_bytes = (16 * 16 + 32 * 8) * sizeof(T);
  emu::Launcher{}(
      ldmatrix ? &ldmatrix_product_kernel<T> : &product_kernel<T>,
      dim3(1),
      dim3(32),
      shared_bytes,
      half_a,
      half_b,
      static_cast<float*>(device_c.data()));
  const float* c = static_cast<const float*>(device_c.data());
  return {c, c + 16 * 8};
}

} // namespace

std::vector<float> product_float16(
    const std::vector<float>& a,
    const std::vector<float>& b,
    bool ldmatrix) {
  return product<__half>(a, b, ldmatrix);
}

std::vector<float> product_bfloat16(
    const std::vector<float>& a,
    const std::vector<float>& b,
    bool ldmatrix) {
  return product<__nv_bfloat16>(a, b, ldmatrix);
}
