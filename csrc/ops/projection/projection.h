#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace subquad {

// The linear layer of the attention modules: y = x W^T + b with the fastest
// matrix product of the running CPU, forward and backward.
//
// Shapes: input [..., I], weight [O, I], bias [O], output [..., O]. Any number
// of leading axes, of any size and with any strides. The output is dense and
// its leading axes lie in memory in the order of the input's, so that a
// transposed [L, B, I] costs no copy, here or in what reads the result. dtypes:
// float64, float32, bfloat16, float16, accumulated as in at::linear. A row of
// the output depends on its own row of the input alone. Deterministic: which
// library multiplies follows from CPU, dtype and shape. Cost: 2 * rows * I * O
// operations forward, twice that backward; no workspace but the libraries' own.
void check_projection(
    const at::Tensor& input,
    const at::Tensor& weight,
    const std::optional<at::Tensor>& bias);

// The axes of `tensor` from the outermost in memory to the innermost; the last
// one stays last.
std::vector<int64_t> memory_order(const at::Tensor& tensor);

std::vector<int64_t> inverse_permutation(const std::vector<int64_t>& order);

// A matrix that every library reads in place: its rows or its columns are
// dense.
at::Tensor readable_matrix(const at::Tensor& matrix);

// [..., N] -> [rows, N], rows in the given order of the axes; a view where the
// strides allow one.
at::Tensor flatten_rows(
    const at::Tensor& tensor,
    const std::vector<int64_t>& order);

// [rows, N] -> [..., N] with the leading axes of `like`.
at::Tensor unflatten_rows(
    const at::Tensor& matrix,
    const at::Tensor& like,
    const std::vector<int64_t>& order);

// Whether oneDNN multiplies: what the caller asks for, as tests and benchmarks
// do, or what the rule prefers for `matrix`.
bool use_onednn(std::optional<bool> requested, const at::Tensor& matrix);

} // namespace subquad
