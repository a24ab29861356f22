#include "ops/window_attention/launch_backward.cuh"

namespace subquad::cuda {

template int launch_backward<float>(
    Launcher&,
    const WindowAttentionParams&,
    const WindowAttentionGradients&,
    void*);

} // namespace subquad::cuda
