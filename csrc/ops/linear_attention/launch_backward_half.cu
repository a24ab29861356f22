#include "ops/linear_attention/launch_backward.cuh"

namespace subquad::cuda {

template int launch_backward<__half>(
    Launcher&,
    const LinearAttentionParams&,
    const LinearAttentionGradients&,
    void*);

} // namespace subquad::cuda
