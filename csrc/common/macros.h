#pragma once

// Everything in csrc/common compiles as plain C++ and inside a CUDA kernel. In
// units that are compiled once per instruction set nothing may be left for the
// linker to choose: it could keep the copy that the running CPU cannot execute.
#if defined(__CUDACC__)
#define SUBQUAD_HOST_DEVICE __host__ __device__
#elif defined(CPU_CAPABILITY) && defined(__GNUC__)
#define SUBQUAD_HOST_DEVICE __attribute__((always_inline))
#else
#define SUBQUAD_HOST_DEVICE
#endif

#if defined(_MSC_VER)
#define SUBQUAD_RESTRICT __restrict
#else
#define SUBQUAD_RESTRICT __restrict__
#endif
