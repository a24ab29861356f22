#pragma once

#include "common/random_features.h"
#include "ops/random_features/signatures.h"

// From tensors to what kernels are told, for every device.
namespace subquad {

// The input is read through its strides; everything else is made dense.
void make_tables_dense(
    RandomFeaturesInputs& inputs,
    RandomFeaturesOptions& options);

// The parameters of forward and of backward, which reads the log scale and
// knows no features (an undefined tensor). The inputs are as make_tables_dense
// leaves them.
RandomFeaturesParams make_params(
    const RandomFeaturesInputs& inputs,
    const RandomFeaturesOptions& options,
    const at::Tensor& features,
    const at::Tensor& log_scale);

// Makes the gradients of the results readable for kernels.
void make_gradients_dense(RandomFeaturesSaved& saved);

// `result` holds what the mask wants.
RandomFeaturesGradients make_gradients(
    const RandomFeaturesSaved& saved,
    const RandomFeaturesGradientTensors& result,
    std::array<bool, 3> output_mask);

} // namespace subquad
