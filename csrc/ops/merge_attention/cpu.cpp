#include <torch/library.h>

#include "ops/merge_attention/arguments.h"
#include "ops/merge_attention/cpu_kernel.h"

namespace at::native {

DEFINE_DISPATCH(subquad_merge_attention_forward_stub);
DEFINE_DISPATCH(subquad_merge_attention_backward_stub);

} // namespace at::native

namespace subquad {

namespace {

MergeAttentionOutputs forward_cpu(
    const at::Tensor& output_a,
    const at::Tensor& lse_a,
    const at::Tensor& output_b,
    const at::Tensor& lse_b) {
  return run_merge_attention_forward(
      output_a, lse_a, output_b, lse_b, [&](const auto& params) {
        at::native::subquad_merge_attention_forward_stub(
            at::kCPU, params, output_a.scalar_type());
      });
}

MergeAttentionGradientTensors backward_cpu(
    const std::optional<at::Tensor>& grad_output,
    const std::optional<at::Tensor>& grad_lse,
    const at::Tensor& output_a,
    const at::Tensor& lse_a,
    const at::Tensor& output_b,
    const at::Tensor& lse_b,
    std::array<bool, 4> output_mask) {
  return run_merge_attention_backward(
      grad_output,
      grad_lse,
      output_a,
      lse_a,
      output_b,
      lse_b,
      output_mask,
      [&](const auto& params, const auto& gradients) {
        at::native::subquad_merge_attention_backward_stub(
            at::kCPU, params, gradients, output_a.scalar_type());
      });
}

TORCH_LIBRARY_IMPL(subquad, CPU, m) {
  m.impl("_merge_attention_forward", &forward_cpu);
  m.impl("_merge_attention_backward", &backward_cpu);
}

} // namespace

} // namespace subquad
