#include "cuda/context.h"
#include "cuda/dtype.h"
#include "cuda/registration.h"
#include "ops/merge_attention/arguments.h"
#include "ops/merge_attention/cuda_kernel.h"

namespace subquad {

namespace {

MergeAttentionOutputs forward_cuda(
    const at::Tensor& output_a,
    const at::Tensor& lse_a,
    const at::Tensor& output_b,
    const at::Tensor& lse_b) {
  const cuda::DeviceGuard guard(output_a);
  return run_merge_attention_forward(
      output_a, lse_a, output_b, lse_b, [&](const auto& params) {
        cuda::check(launch_merge_attention_forward(
            params, cuda::scalar_kind(output_a), cuda::current_stream()));
      });
}

MergeAttentionGradientTensors backward_cuda(
    const std::optional<at::Tensor>& grad_output,
    const std::optional<at::Tensor>& grad_lse,
    const at::Tensor& output_a,
    const at::Tensor& lse_a,
    const at::Tensor& output_b,
    const at::Tensor& lse_b,
    std::array<bool, 4> output_mask) {
  const cuda::DeviceGuard guard(output_a);
  return run_merge_attention_backward(
      grad_output,
      grad_lse,
      output_a,
      lse_a,
      output_b,
      lse_b,
      output_mask,
      [&](const auto& params, const auto& gradients) {
        cuda::check(launch_merge_attention_backward(
            params,
            gradients,
            cuda::scalar_kind(output_a),
            cuda::current_stream()));
      });
}

SUBQUAD_CUDA_IMPL(m) {
  m.impl("_merge_attention_forward", &forward_cuda);
  m.impl("_merge_attention_backward", &backward_cuda);
}

} // namespace

} // namespace subquad
