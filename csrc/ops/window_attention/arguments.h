#pragma once

#include "common/window_attention.h"
#include "ops/optional.h"
#include "ops/window_attention/signatures.h"

// From tensors to what kernels are told, for every device.
namespace subquad {

// Query, key, value and the summaries are read through their strides;
// everything else that a kernel reads is made dense.
void make_tables_dense(
    WindowAttentionInputs& inputs,
    WindowAttentionOptions& options);

// Everything but the results' pointers, from arguments with dense tables.
WindowAttentionParams make_params(
    const WindowAttentionInputs& inputs,
    const WindowAttentionOptions& options);

} // namespace subquad
