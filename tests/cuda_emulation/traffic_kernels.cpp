#include "traffic_kernels.h"

#include "cuda/prim.cuh"

namespace {

constexpr int kTile = 32;

__global__ void
transpose_kernel(const float* in, float* out, int row_floats, int stride) {
  SUBQUAD_SHARED(memory);
  float* tile = reinterpret_cast<float*>(memory);
  const int t = threadIdx.x;
  for (int row = 0; row < kTile; ++row) {
    tile[row * row_floats + t] = in[row * kTile + t];
  }
  __syncthreads();
  for (int column = 0; column < kTile; ++column) {
    out[(column * kTile + t) * stride] = tile[t * row_floats + column];
  }
}

} // namespace

int transpose_tile(int row_floats, int stride) {
  const size_t floats = kTile * kTile;
  const emu::Arena in("in", floats * sizeof(float), true);
  const emu::Arena out("out", floats * stride * sizeof(float));
  return emu::Launcher{}(
      transpose_kernel,
      dim3(1),
      dim3(kTile),
      kTile * row_floats * sizeof(float),
      static_cast<const float*>(in.data()),
      static_cast<float*>(out.data()),
      row_floats,
      stride);
}
