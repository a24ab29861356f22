#pragma once

#include "common/sequence_pool.h"
#include "ops/sequence_pool/signatures.h"

// From tensors to what kernels are told, for every device.
namespace subquad {

// Logits and values are read through their strides, spans and order are dense.
SequencePoolParams make_params(
    const SequencePoolInputs& inputs,
    const SequencePoolOptions& options,
    const at::Tensor& output,
    const at::Tensor& lse);

// Makes what backward reads of the results dense.
void make_results_dense(SequencePoolSaved& saved);

// `result` holds what the mask wants.
SequencePoolGradients make_gradients(
    const SequencePoolSaved& saved,
    const SequencePoolGradientTensors& result,
    std::array<bool, 2> output_mask);

} // namespace subquad
