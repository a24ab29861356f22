#include "launcher.h"
#include "ops/window_attention/cuda_kernel.h"
#include "ops/window_attention/kernel_forward.cuh"
#include "window_operands.h"

namespace subquad {

int launch_window_attention_forward(
    const WindowAttentionParams& params,
    ScalarKind dtype,
    void* /* stream */) {
  Operands operands = window_operands(params, dtype);
  operands.output(
      "output", params.output, params.output_stride, params.value_dim);
  operands.lines("logsumexp", params.logsumexp, false);
  return cuda::dispatch_window_attention_forward(
      emu::Launcher(), params, dtype);
}

} // namespace subquad
