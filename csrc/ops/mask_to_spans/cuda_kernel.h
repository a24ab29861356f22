#pragma once

#include "common/mask_to_spans.h"

namespace subquad {

// Launches on `stream` (a cudaStream_t) and returns a cudaError_t. There is at
// least one row.
int launch_mask_to_spans(const MaskToSpansParams& params, void* stream);

} // namespace subquad
