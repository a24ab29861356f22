#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace subquad {

// The linear layer of the attention modules: y = x W^T + b with the fastest
// matrix product of the running CPU, forward and backward.
//
// Shapes: input [..., I], weight [O, I], bias [O], output [..., O] (dense). Any
// number of leading axes, of any size and with any strides; a transposed
// [L, B, I] is read where it lies. dtypes: float64, float32, bfloat16, float16,
// accumulated as in at::linear. A row of the output depends on its own row of
// the input alone; the result is a function of the shape and the CPU, never of
// the thread count's timing. Cost: 2 * rows * I * O operations forward, twice
// that backward; workspace for one packed operand.
void check_projection(
    const at::Tensor& input,
    const at::Tensor& weight,
    const std::optional<at::Tensor>& bias);

} // namespace subquad
