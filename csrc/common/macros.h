#pragma once

// Everything in csrc/common compiles as plain C++ and inside a CUDA kernel.
#if defined(__CUDACC__)
#define SUBQUAD_HOST_DEVICE __host__ __device__
#else
#define SUBQUAD_HOST_DEVICE
#endif

#if defined(_MSC_VER)
#define SUBQUAD_RESTRICT __restrict
#else
#define SUBQUAD_RESTRICT __restrict__
#endif
