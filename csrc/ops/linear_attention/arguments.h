#pragma once

#include "common/linear_attention.h"
#include "ops/linear_attention/signatures.h"

// From tensors to what kernels are told, for every device.
namespace subquad {

// Query, key and value are read through their strides; everything else that a
// kernel reads is made dense.
void make_tables_dense(
    LinearAttentionInputs& inputs,
    LinearAttentionOptions& options);

// Everything but the results' pointers, from arguments with dense tables.
LinearAttentionParams make_params(
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options);

// The results' pointers. Backward is told of them as of outputs.
void set_outputs(
    LinearAttentionParams& params,
    const LinearAttentionOutputs& outputs);

// Saved tensors with what backward reads made dense: grad_output in its last
// axis, the others wholly.
LinearAttentionSaved dense_saved(const LinearAttentionSaved& saved);

LinearAttentionGradients make_gradients(
    const LinearAttentionSaved& saved,
    const LinearAttentionGradientTensors& results,
    std::array<bool, 7> output_mask);

} // namespace subquad
