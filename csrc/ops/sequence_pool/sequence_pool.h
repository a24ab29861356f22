#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

#include "common/sequence_pool.h"

namespace subquad {

// Softmax pooling of a sequence into slots:
//
//   lse[c] = log sum_n exp(logits[n, c])
//   output[c] = sum_n exp(logits[n, c] - lse[c]) value[n]
//
// over the valid tokens n of a row. It is the keys' side of efficient attention
// (Shen et al. 2021, arXiv:1812.01243, eq. 4: the logits are the keys) and of
// mechanisms that pool memory into slots by learned logits (ABC, Peng et al.
// 2022, arXiv:2110.02488).
//
// Shapes: logits [B, H, S, C], value [B, Hv, S, M] with H % Hv == 0, output
// [R, H, C, M] and lse [R, H, C] in float32 (float64 for float64) with R rows,
// B unless packed. dtypes: float64, float32, bfloat16, float16. Rows are as in
// linear_attention. A row without tokens gives zeros, lse = -inf and no
// gradient. Cost: O(S C M) time; memory of inputs and results. Both inputs are
// differentiable, and so are both results.
struct SequencePoolOptions {
  std::optional<at::Tensor> spans; // [R, 2] int64
  bool packed = false;
  std::optional<at::Tensor> order; // [B, S] int64
};

struct SequencePoolInputs {
  at::Tensor logits;
  at::Tensor value;
};

using SequencePoolOutputs = std::tuple<at::Tensor, at::Tensor>;
using SequencePoolGradientTensors = std::tuple<at::Tensor, at::Tensor>;

// The checks that need no data; every backend calls them.
void check_sequence_pool(
    const SequencePoolInputs& inputs,
    const SequencePoolOptions& options);

SequencePoolOutputs empty_sequence_pool_outputs(
    const SequencePoolInputs& inputs,
    const SequencePoolOptions& options);
SequencePoolGradientTensors empty_sequence_pool_gradients(
    const SequencePoolInputs& inputs,
    std::array<bool, 2> output_mask);

} // namespace subquad
