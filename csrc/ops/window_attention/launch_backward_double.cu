#include "ops/window_attention/launch_backward.cuh"

namespace subquad::cuda {

template int launch_backward<double>(
    Launcher&,
    const WindowAttentionParams&,
    const WindowAttentionGradients&,
    void*);

} // namespace subquad::cuda
