#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace subquad {

// Attention that normalises queries and keys apart (Shen et al. 2021,
// arXiv:1812.01243, eq. 4):
//
//   context = softmax_n(k)^T v
//   output_i = scale softmax_d(q_i) context
//
// The softmax of the keys runs over the valid tokens n of a row, for each
// feature; that of a query over its features d. The weights of a query sum to
// `scale`: there is no denominator.
//
// Shapes: query [B, H, L, D], key [B, Hkv, S, D], value [B, Hkv, S, M], output
// [B, H, L, M]; H % Hkv == 0. dtypes: float64, float32, bfloat16, float16. Rows
// are as in linear_attention; without tokens one gives zeros. Cost: O((L + S) D
// M) time; memory of inputs, output and one context [D, M] per row and head.
// query, key and value are differentiable.
at::Tensor efficient_attention(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value,
    std::optional<double> scale, // default D^-1/2
    const std::optional<at::Tensor>& lengths,
    const std::optional<at::Tensor>& starts,
    const std::optional<at::Tensor>& query_lengths,
    const std::optional<at::Tensor>& query_starts,
    const std::optional<at::Tensor>& order,
    const std::optional<at::Tensor>& query_order,
    const std::optional<at::Tensor>& cu_seqlens,
    const std::optional<at::Tensor>& query_cu_seqlens);

} // namespace subquad
