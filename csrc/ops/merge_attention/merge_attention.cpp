#include "ops/merge_attention/merge_attention.h"

#include <ATen/OpMathType.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/layout.h"
#include "ops/optional.h"

namespace subquad {

namespace {

constexpr const char* kOp = "merge_attention";

} // namespace

void check_merge_attention(const MergeAttentionInputs& inputs) {
  const auto& [output_a, lse_a, output_b, lse_b] = inputs;
  check_rank(kOp, "output_a", output_a, 4, "[B, H, L, M]");
  check_floating_point(kOp, "output_a", output_a);
  check_rank(kOp, "output_b", output_b, 4, "[B, H, L, M]");
  TORCH_CHECK_TYPE(
      output_b.scalar_type() == output_a.scalar_type(),
      kOp,
      ": output_b must have the dtype of output_a, ",
      output_a.scalar_type(),
      ", got ",
      output_b.scalar_type());
  constexpr const char* kAxes[] = {"B", "H", "L", "M"};
  for (int64_t axis = 0; axis < 4; ++axis) {
    check_size(
        kOp, "output_b", output_b, axis, output_a.sym_size(axis), kAxes[axis]);
  }
  TORCH_CHECK_VALUE(
      output_b.device() == output_a.device(),
      kOp,
      ": output_b must be on the device of output_a, ",
      output_a.device(),
      ", got ",
      output_b.device());
  check_dense_last_axis(kOp, "output_a", output_a);
  check_dense_last_axis(kOp, "output_b", output_b);
  check_lse(kOp, "lse_a", lse_a, "output_a", output_a);
  check_lse(kOp, "lse_b", lse_b, "output_a", output_a);
}

MergeAttentionOutputs empty_merge_attention_outputs(
    const MergeAttentionInputs& inputs) {
  return {
      empty_in_layout_of(inputs.output_a, inputs.output_a.sym_size(3)),
      at::empty_symint(inputs.lse_a.sym_sizes(), inputs.lse_a.options())};
}

MergeAttentionGradientTensors empty_merge_attention_gradients(
    const MergeAttentionInputs& inputs,
    std::array<bool, 4> output_mask) {
  const auto like = [&](size_t index, const at::Tensor& tensor) {
    if (!output_mask[index]) {
      return at::empty({0}, tensor.options());
    }
    return tensor.dim() == 4
        ? empty_in_layout_of(tensor, tensor.sym_size(3))
        : at::empty_symint(tensor.sym_sizes(), tensor.options());
  };
  return {
      like(0, inputs.output_a),
      like(1, inputs.lse_a),
      like(2, inputs.output_b),
      like(3, inputs.lse_b)};
}

namespace {

MergeAttentionOutputs forward_meta(
    const at::Tensor& output_a,
    const at::Tensor& lse_a,
    const at::Tensor& output_b,
    const at::Tensor& lse_b) {
  const MergeAttentionInputs inputs{output_a, lse_a, output_b, lse_b};
  check_merge_attention(inputs);
  return empty_merge_attention_outputs(inputs);
}

MergeAttentionGradientTensors backward_meta(
    const OptionalTensor& /* grad_output */,
    const OptionalTensor& /* grad_lse */,
    const at::Tensor& output_a,
    const at::Tensor& lse_a,
    const at::Tensor& output_b,
    const at::Tensor& lse_b,
    std::array<bool, 4> output_mask) {
  return empty_merge_attention_gradients(
      {output_a, lse_a, output_b, lse_b}, output_mask);
}

MergeAttentionOutputs merge_attention(
    const at::Tensor& output_a,
    const at::Tensor& lse_a,
    const at::Tensor& output_b,
    const at::Tensor& lse_b) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("subquad::_merge_attention_forward", "")
          .typed<decltype(forward_meta)>();
  return op.call(output_a, lse_a, output_b, lse_b);
}

class MergeAttention : public torch::autograd::Function<MergeAttention> {
 public:
  static constexpr bool is_traceable = true;

  static torch::autograd::variable_list forward(
      torch::autograd::AutogradContext* ctx,
      const at::Tensor& output_a,
      const at::Tensor& lse_a,
      const at::Tensor& output_b,
      const at::Tensor& lse_b) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [output, lse] =
        merge_attention(output_a, lse_a, output_b, lse_b);
    ctx->save_for_backward({output_a, lse_a, output_b, lse_b});
    ctx->set_materialize_grads(false);
    return {output, lse};
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* ctx,
      const torch::autograd::variable_list& grads) {
    constexpr size_t kInputs = 4;
    torch::autograd::variable_list result(kInputs);
    if (!grads[0].defined() && !grads[1].defined()) {
      return result;
    }
    const auto saved = ctx->get_saved_variables();
    std::array<bool, kInputs> mask{};
    for (size_t i = 0; i < kInputs; ++i) {
      mask[i] = ctx->needs_input_grad(i);
    }
    static const auto op =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("subquad::_merge_attention_backward", "")
            .typed<decltype(backward_meta)>();
    const auto gradients = op.call(
        defined(grads[0]),
        defined(grads[1]),
        saved[0],
        saved[1],
        saved[2],
        saved[3],
        mask);
    const std::array<at::Tensor, kInputs> list = std::apply(
        [](const auto&... tensors) {
          return std::array<at::Tensor, kInputs>{tensors...};
        },
        gradients);
    for (size_t i = 0; i < kInputs; ++i) {
      if (mask[i]) {
        result[i] = list[i];
      }
    }
    return result;
  }
};

MergeAttentionOutputs merge_attention_autograd(
    const at::Tensor& output_a,
    const at::Tensor& lse_a,
    const at::Tensor& output_b,
    const at::Tensor& lse_b) {
  const auto outputs = MergeAttention::apply(output_a, lse_a, output_b, lse_b);
  return {outputs[0], outputs[1]};
}

// The dtype of the outputs is kept; parts that were computed inside and outside
// of autocast meet in the wider one.
template <c10::DeviceType device>
MergeAttentionOutputs merge_attention_autocast(
    const at::Tensor& output_a,
    const at::Tensor& lse_a,
    const at::Tensor& output_b,
    const at::Tensor& lse_b) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKeySet(
      device == at::kCUDA ? c10::DispatchKey::AutocastCUDA
                          : c10::DispatchKey::AutocastCPU));
  const at::ScalarType dtype =
      c10::promoteTypes(output_a.scalar_type(), output_b.scalar_type());
  const at::ScalarType lse_dtype = at::toOpMathType(dtype);
  return merge_attention_autograd(
      output_a.to(dtype),
      lse_a.to(lse_dtype),
      output_b.to(dtype),
      lse_b.to(lse_dtype));
}

TORCH_LIBRARY_IMPL(subquad, Meta, m) {
  m.impl("_merge_attention_forward", &forward_meta);
  m.impl("_merge_attention_backward", &backward_meta);
}

TORCH_LIBRARY_IMPL(subquad, CompositeExplicitAutograd, m) {
  m.impl("merge_attention", &merge_attention);
}

TORCH_LIBRARY_IMPL(subquad, Autograd, m) {
  m.impl("merge_attention", &merge_attention_autograd);
  m.impl(
      "_merge_attention_forward",
      torch::autograd::autogradNotImplementedFallback());
  m.impl(
      "_merge_attention_backward",
      torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(subquad, AutocastCPU, m) {
  m.impl("merge_attention", &merge_attention_autocast<at::kCPU>);
}

TORCH_LIBRARY_IMPL(subquad, AutocastCUDA, m) {
  m.impl("merge_attention", &merge_attention_autocast<at::kCUDA>);
}

} // namespace

} // namespace subquad
