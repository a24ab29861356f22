#include "launcher.h"
#include "operands.h"
#include "ops/mask_to_spans/cuda_kernel.h"
#include "ops/mask_to_spans/kernel.cuh"

namespace subquad {

int launch_mask_to_spans(const MaskToSpansParams& params, void* /* stream */) {
  const size_t elements = params.rows * params.size;
  const emu::Registration mask(
      "mask", params.mask, elements * params.element_size, true);
  const emu::Registration lengths(
      "lengths", params.lengths, params.rows * sizeof(int64_t), false);
  const emu::Registration order(
      "order", params.order, elements * sizeof(int64_t), false);
  return launch_mask_to_spans(emu::Launcher(), params);
}

} // namespace subquad
