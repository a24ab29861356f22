#pragma once

#include "ops/linear_attention/kernel_product.cuh"
#include "ops/linear_attention/kernel_sums.cuh"

// Forward of linear attention: sums of the chunks of keys, a scan over them,
// and the output of each chunk of queries, all chunks at once.
namespace subquad::cuda {

template <typename scalar_t, typename Launcher>
int launch_forward(
    Launcher&& launch,
    const LinearAttentionParams& params,
    void* memory) {
  const LinearAttentionGradients none{};
  const LinearAttentionWorkspace workspace =
      linear_attention_workspace(params, nullptr, sizeof(scalar_t), memory);
  const auto layout = [&](const TokenAxis& axis) {
    return linear_attention_layout<scalar_t>(params, none, workspace, axis);
  };
  const int error = launch_states<scalar_t>(
      launch,
      params,
      layout(key_axis(params, ChunksOf::kSums, sizeof(scalar_t))),
      true);
  return error != 0
      ? error
      : launch_product<scalar_t, Product::kOutput>(
            launch,
            params,
            none,
            layout(query_axis(params, ChunksOf::kTiles, sizeof(scalar_t))),
            query_states<scalar_t>(params, workspace));
}

template <typename Launcher>
int dispatch_linear_attention_forward(
    Launcher&& launch,
    const LinearAttentionParams& params,
    void* workspace,
    ScalarKind kind) {
  return dispatch_scalar(kind, [&]<typename scalar_t>() {
    return launch_forward<scalar_t>(launch, params, workspace);
  });
}

} // namespace subquad::cuda
