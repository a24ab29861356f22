#include "ops/sequence_pool/sequence_pool.h"

#include <ATen/OpMathType.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/layout.h"
#include "ops/sequence_pool/signatures.h"
#include "ops/spans.h"

namespace subquad {

namespace {

constexpr const char* kOp = "sequence_pool";

} // namespace

void check_sequence_pool(
    const SequencePoolInputs& inputs,
    const SequencePoolOptions& /* options */) {
  const at::Tensor& logits = inputs.logits;
  const at::Tensor& value = inputs.value;
  check_rank(kOp, "logits", logits, 4, "[B, H, S, C]");
  check_floating_point(kOp, "logits", logits);
  check_rank(kOp, "value", value, 4, "[B, Hv, S, M]");
  check_same_dtype(kOp, "value", value, logits, "logits");
  check_same_device(kOp, "value", value, logits, "logits");
  check_size(kOp, "value", value, 0, logits.sym_size(0), "B");
  check_size(kOp, "value", value, 2, logits.sym_size(2), "S");
  TORCH_CHECK_VALUE(
      value.sym_size(1) > 0 && logits.sym_size(1) % value.sym_size(1) == 0,
      kOp,
      ": the heads of logits must be a multiple of those of value, got ",
      logits.sym_size(1),
      " and ",
      value.sym_size(1));
  TORCH_CHECK_VALUE(
      logits.sym_size(3) > 0 && value.sym_size(3) > 0,
      kOp,
      ": C and M must be positive, got ",
      logits.sym_size(3),
      " and ",
      value.sym_size(3));
  check_dense_last_axis(kOp, "logits", logits);
  check_dense_last_axis(kOp, "value", value);
}

SequencePoolOutputs empty_sequence_pool_outputs(
    const SequencePoolInputs& inputs,
    const SequencePoolOptions& options) {
  const at::Tensor& logits = inputs.logits;
  const c10::SymInt rows =
      options.packed ? options.spans->sym_size(0) : logits.sym_size(0);
  const c10::SymInt heads = logits.sym_size(1);
  const c10::SymInt slots = logits.sym_size(3);
  return {
      at::empty_symint(
          {rows, heads, slots, inputs.value.sym_size(3)}, logits.options()),
      at::empty_symint(
          {rows, heads, slots},
          logits.options().dtype(at::toOpMathType(logits.scalar_type())))};
}

SequencePoolGradientTensors empty_sequence_pool_gradients(
    const SequencePoolInputs& inputs,
    std::array<bool, 2> output_mask) {
  const auto in_layout = [&](size_t index, const at::Tensor& like) {
    return output_mask[index] ? empty_in_layout_of(like, like.sym_size(3))
                              : at::empty({0}, like.options());
  };
  return {in_layout(0, inputs.logits), in_layout(1, inputs.value)};
}

SequencePoolOptions make_sequence_pool_options(
    const SequencePoolInputs& inputs,
    const OptionalTensor& lengths,
    const OptionalTensor& starts,
    const OptionalTensor& order,
    const OptionalTensor& cu_seqlens) {
  check_rank(kOp, "logits", inputs.logits, 4, "[B, H, S, C]");
  return {
      make_spans(
          kOp,
          "",
          inputs.logits,
          inputs.logits.sym_size(2),
          lengths,
          starts,
          cu_seqlens,
          order,
          "logits"),
      cu_seqlens.has_value(),
      order};
}

namespace {

SequencePoolOutputs forward_meta(
    const SequencePoolInputs& inputs,
    const SequencePoolOptions& options) {
  check_sequence_pool(inputs, options);
  return empty_sequence_pool_outputs(inputs, options);
}

SequencePoolGradientTensors backward_meta(
    const SequencePoolSaved& /* saved */,
    const SequencePoolInputs& inputs,
    const SequencePoolOptions& /* options */,
    std::array<bool, 2> output_mask) {
  return empty_sequence_pool_gradients(inputs, output_mask);
}

SequencePoolOutputs call_forward(
    const SequencePoolInputs& inputs,
    const SequencePoolOptions& options) {
  using Signature = decltype(SequencePoolForward<&forward_meta>::call);
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("subquad::_sequence_pool_forward", "")
          .typed<Signature>();
  return op.call(
      inputs.logits,
      inputs.value,
      options.spans,
      options.packed,
      options.order);
}

SequencePoolGradientTensors call_backward(
    const SequencePoolSaved& saved,
    const SequencePoolInputs& inputs,
    const SequencePoolOptions& options,
    std::array<bool, 2> output_mask) {
  using Signature = decltype(SequencePoolBackward<&backward_meta>::call);
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("subquad::_sequence_pool_backward", "")
          .typed<Signature>();
  return op.call(
      saved.grad_output,
      saved.grad_lse,
      saved.output,
      saved.lse,
      inputs.logits,
      inputs.value,
      options.spans,
      options.packed,
      options.order,
      output_mask);
}

class SequencePool : public torch::autograd::Function<SequencePool> {
 public:
  static constexpr bool is_traceable = true;

  static torch::autograd::variable_list forward(
      torch::autograd::AutogradContext* ctx,
      const at::Tensor& logits,
      const at::Tensor& value,
      const SequencePoolOptions& options) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, lse] = call_forward({logits, value}, options);
    ctx->save_for_backward(
        {logits,
         value,
         output,
         lse,
         options.spans.value_or(at::Tensor()),
         options.order.value_or(at::Tensor())});
    ctx->saved_data["packed"] = options.packed;
    ctx->set_materialize_grads(false);
    return {output, lse};
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* ctx,
      const torch::autograd::variable_list& grads) {
    constexpr size_t kArguments = 3;
    torch::autograd::variable_list result(kArguments);
    if (!grads[0].defined() && !grads[1].defined()) {
      return result;
    }
    const auto saved = ctx->get_saved_variables();
    const std::array<bool, 2> mask{
        ctx->needs_input_grad(0), ctx->needs_input_grad(1)};
    const auto [grad_logits, grad_value] = call_backward(
        {defined(grads[0]), defined(grads[1]), saved[2], saved[3]},
        {saved[0], saved[1]},
        {defined(saved[4]),
         ctx->saved_data["packed"].toBool(),
         defined(saved[5])},
        mask);
    if (mask[0]) {
      result[0] = grad_logits;
    }
    if (mask[1]) {
      result[1] = grad_value;
    }
    return result;
  }
};

SequencePoolOutputs pool_with_lse_autograd(
    const SequencePoolInputs& inputs,
    const SequencePoolOptions& options) {
  const auto outputs =
      SequencePool::apply(inputs.logits, inputs.value, options);
  return {outputs[0], outputs[1]};
}

template <c10::DispatchKey key, c10::DeviceType device>
SequencePoolOutputs pool_with_lse_autocast(
    const SequencePoolInputs& inputs,
    const SequencePoolOptions& options) {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::DispatchKeySet(key)};
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
  return pool_with_lse_autograd(
      {at::autocast::cached_cast(dtype, inputs.logits, device),
       at::autocast::cached_cast(dtype, inputs.value, device)},
      options);
}

template <auto function>
at::Tensor output_of(
    const SequencePoolInputs& inputs,
    const SequencePoolOptions& options) {
  return std::get<0>(function(inputs, options));
}

TORCH_LIBRARY_IMPL(subquad, Meta, m) {
  m.impl("_sequence_pool_forward", SequencePoolForward<&forward_meta>::call);
  m.impl("_sequence_pool_backward", SequencePoolBackward<&backward_meta>::call);
}

TORCH_LIBRARY_IMPL(subquad, CompositeExplicitAutograd, m) {
  m.impl("sequence_pool", SequencePoolPublic<&output_of<&call_forward>>::call);
  m.impl("sequence_pool_with_lse", SequencePoolPublic<&call_forward>::call);
}

TORCH_LIBRARY_IMPL(subquad, Autograd, m) {
  m.impl(
      "sequence_pool",
      SequencePoolPublic<&output_of<&pool_with_lse_autograd>>::call);
  m.impl(
      "sequence_pool_with_lse",
      SequencePoolPublic<&pool_with_lse_autograd>::call);
  m.impl(
      "_sequence_pool_forward",
      torch::autograd::autogradNotImplementedFallback());
  m.impl(
      "_sequence_pool_backward",
      torch::autograd::autogradNotImplementedFallback());
}

template <c10::DispatchKey key, c10::DeviceType device>
void register_autocast(torch::Library& m) {
  constexpr auto kFunction = &pool_with_lse_autocast<key, device>;
  m.impl("sequence_pool", SequencePoolPublic<&output_of<kFunction>>::call);
  m.impl("sequence_pool_with_lse", SequencePoolPublic<kFunction>::call);
}

TORCH_LIBRARY_IMPL(subquad, AutocastCPU, m) {
  register_autocast<c10::DispatchKey::AutocastCPU, at::kCPU>(m);
}

TORCH_LIBRARY_IMPL(subquad, AutocastCUDA, m) {
  register_autocast<c10::DispatchKey::AutocastCUDA, at::kCUDA>(m);
}

} // namespace

} // namespace subquad
