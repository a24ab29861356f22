#pragma once

#include "cuda/launcher.cuh"
#include "ops/linear_attention/kernel_backward.cuh"

// The kernels of each dtype are compiled in a unit of their own, since ptxas
// needs its time for them.
namespace subquad::cuda {

extern template int launch_backward<__nv_bfloat16>(
    Launcher&,
    const LinearAttentionParams&,
    const LinearAttentionGradients&,
    void*);
extern template int launch_backward<double>(
    Launcher&,
    const LinearAttentionParams&,
    const LinearAttentionGradients&,
    void*);
extern template int launch_backward<float>(
    Launcher&,
    const LinearAttentionParams&,
    const LinearAttentionGradients&,
    void*);
extern template int launch_backward<__half>(
    Launcher&,
    const LinearAttentionParams&,
    const LinearAttentionGradients&,
    void*);

} // namespace subquad::cuda
