#include "ops/window_attention/launch_backward.cuh"

namespace subquad::cuda {

template int launch_backward<__nv_bfloat16>(
    Launcher&,
    const WindowAttentionParams&,
    const WindowAttentionGradients&,
    void*);

} // namespace subquad::cuda
