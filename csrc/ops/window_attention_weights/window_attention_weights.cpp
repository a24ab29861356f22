#include "ops/window_attention_weights/window_attention_weights.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/layout.h"
#include "ops/window_attention_weights/signatures.h"

namespace subquad {

namespace {

constexpr const char* kOp = "window_attention_weights";

} // namespace

void check_window_attention_weights(
    const WindowAttentionWeightsInputs& inputs,
    const WindowAttentionOptions& options) {
  check_window_attention(inputs.attention, options);
  check_lse(kOp, "lse", inputs.lse, "query", inputs.attention.query);
}

at::Tensor empty_window_attention_weights(
    const WindowAttentionWeightsInputs& inputs,
    const WindowAttentionOptions& options) {
  const at::Tensor& query = inputs.attention.query;
  return at::empty_symint(
      {query.sym_size(0),
       query.sym_size(1),
       query.sym_size(2),
       options.left + options.block + options.right},
      query.options());
}

WindowAttentionWeightsGradients empty_window_attention_weights_gradients(
    const WindowAttentionWeightsInputs& inputs,
    std::array<bool, 6> output_mask) {
  const auto& [query, key, value, bias, key_bias, relative_key, sk, sv, sr] =
      inputs.attention;
  const auto none = [&] { return at::empty({0}, inputs.lse.options()); };
  const auto in_layout = [&](size_t index, const at::Tensor& like) {
    return output_mask[index] ? empty_in_layout_of(like, like.sym_size(3))
                              : none();
  };
  const auto dense = [&](size_t index, const OptionalTensor& like) {
    return output_mask[index] && like.has_value()
        ? at::empty_symint(like->sym_sizes(), like->options())
        : none();
  };
  return {
      in_layout(0, query),
      in_layout(1, key),
      dense(2, inputs.lse),
      dense(3, bias),
      dense(4, key_bias),
      dense(5, relative_key)};
}

namespace {

at::Tensor forward_meta(
    const WindowAttentionWeightsInputs& inputs,
    const WindowAttentionOptions& options) {
  check_window_attention_weights(inputs, options);
  return empty_window_attention_weights(inputs, options);
}

WindowAttentionWeightsGradients backward_meta(
    const at::Tensor& /* grad */,
    const at::Tensor& /* weights */,
    const WindowAttentionWeightsInputs& inputs,
    const WindowAttentionOptions& /* options */,
    std::array<bool, 6> output_mask) {
  return empty_window_attention_weights_gradients(inputs, output_mask);
}

at::Tensor call_forward(
    const WindowAttentionWeightsInputs& inputs,
    const WindowAttentionOptions& options) {
  using Signature =
      decltype(WindowAttentionWeightsForward<&forward_meta>::call);
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("subquad::_window_attention_weights_forward", "")
          .typed<Signature>();
  const WindowAttentionInputs& attention = inputs.attention;
  return op.call(
      attention.query,
      attention.key,
      inputs.lse,
      attention.bias,
      attention.key_bias,
      attention.relative_key,
      options.block,
      options.left,
      options.right,
      options.causal,
      options.query_offset,
      options.query_position,
      options.query_spans,
      options.key_spans,
      options.packed,
      options.query_order,
      options.key_order,
      options.scale);
}

WindowAttentionWeightsGradients call_backward(
    const at::Tensor& grad,
    const at::Tensor& weights,
    const WindowAttentionWeightsInputs& inputs,
    const WindowAttentionOptions& options,
    std::array<bool, 6> output_mask) {
  using Signature =
      decltype(WindowAttentionWeightsBackward<&backward_meta>::call);
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("subquad::_window_attention_weights_backward", "")
          .typed<Signature>();
  const WindowAttentionInputs& attention = inputs.attention;
  return op.call(
      grad,
      weights,
      attention.query,
      attention.key,
      inputs.lse,
      attention.bias,
      attention.key_bias,
      attention.relative_key,
      options.block,
      options.left,
      options.right,
      options.causal,
      options.query_offset,
      options.query_position,
      options.query_spans,
      options.key_spans,
      options.packed,
      options.query_order,
      options.key_order,
      options.scale,
      output_mask);
}

class WindowAttentionWeights
    : public torch::autograd::Function<WindowAttentionWeights> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(
      torch::autograd::AutogradContext* ctx,
      const at::Tensor& query,
      const at::Tensor& key,
      const at::Tensor& lse,
      const OptionalTensor& bias,
      const OptionalTensor& key_bias,
      const OptionalTensor& relative_key,
      const WindowAttentionOptions& options) {
    at::AutoDispatchBelowADInplaceOrView guard;
    at::Tensor weights = call_forward(
        make_weights_inputs(query, key, lse, bias, key_bias, relative_key),
        options);
    const auto optional = [](const OptionalTensor& tensor) {
      return tensor.value_or(at::Tensor());
    };
    ctx->save_for_backward(
        {query,
         key,
         lse,
         optional(bias),
         optional(key_bias),
         optional(relative_key),
         weights,
         optional(options.query_position),
         optional(options.query_spans),
         optional(options.key_spans),
         optional(options.query_order),
         optional(options.key_order)});
    ctx->saved_data["block"] = options.block;
    ctx->saved_data["left"] = options.left;
    ctx->saved_data["right"] = options.right;
    ctx->saved_data["causal"] = options.causal;
    ctx->saved_data["query_offset"] = options.query_offset;
    ctx->saved_data["packed"] = options.packed;
    ctx->saved_data["scale"] = options.scale;
    return weights;
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* ctx,
      const torch::autograd::variable_list& grads) {
    constexpr size_t kDifferentiable = 6;
    const auto saved = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    WindowAttentionOptions options;
    options.block = data["block"].toSymInt();
    options.left = data["left"].toSymInt();
    options.right = data["right"].toSymInt();
    options.causal = data["causal"].toBool();
    options.query_offset = data["query_offset"].toSymInt();
    options.query_position = defined(saved[7]);
    options.query_spans = defined(saved[8]);
    options.key_spans = defined(saved[9]);
    options.packed = data["packed"].toBool();
    options.query_order = defined(saved[10]);
    options.key_order = defined(saved[11]);
    options.scale = data["scale"].toDouble();
    // Autograd numbers the inputs that were given, without the absent ones.
    std::array<bool, kDifferentiable> mask{};
    size_t given = 0;
    for (size_t i = 0; i < kDifferentiable; ++i) {
      mask[i] = saved[i].defined() && ctx->needs_input_grad(given++);
    }
    const auto gradients = call_backward(
        grads[0],
        saved[6],
        make_weights_inputs(
            saved[0],
            saved[1],
            saved[2],
            defined(saved[3]),
            defined(saved[4]),
            defined(saved[5])),
        options,
        mask);
    torch::autograd::variable_list result = std::apply(
        [](const auto&... tensors) {
          return torch::autograd::variable_list{tensors..., at::Tensor()};
        },
        gradients);
    for (size_t i = 0; i < kDifferentiable; ++i) {
      if (!mask[i]) {
        result[i] = at::Tensor();
      }
    }
    return result;
  }
};

at::Tensor weights_autograd(
    const WindowAttentionWeightsInputs& inputs,
    const WindowAttentionOptions& options) {
  const WindowAttentionInputs& attention = inputs.attention;
  return WindowAttentionWeights::apply(
      attention.query,
      attention.key,
      inputs.lse,
      attention.bias,
      attention.key_bias,
      attention.relative_key,
      options);
}

// Logits in the lower precision, like those of attention under autocast.
template <c10::DeviceType device>
at::Tensor weights_autocast(
    const WindowAttentionWeightsInputs& inputs,
    const WindowAttentionOptions& options) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKeySet(
      device == at::kCUDA ? c10::DispatchKey::AutocastCUDA
                          : c10::DispatchKey::AutocastCPU));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
  const auto cast = [&](const at::Tensor& tensor) {
    return at::autocast::cached_cast(dtype, tensor, device);
  };
  const auto cast_optional = [&](const OptionalTensor& tensor) {
    return tensor.has_value() ? OptionalTensor(cast(*tensor)) : std::nullopt;
  };
  const WindowAttentionInputs& attention = inputs.attention;
  return weights_autograd(
      make_weights_inputs(
          cast(attention.query),
          cast(attention.key),
          at::autocast::cached_cast(at::kFloat, inputs.lse, device),
          cast_optional(attention.bias),
          cast_optional(attention.key_bias),
          cast_optional(attention.relative_key)),
      options);
}

TORCH_LIBRARY_IMPL(subquad, Meta, m) {
  m.impl(
      "_window_attention_weights_forward",
      WindowAttentionWeightsForward<&forward_meta>::call);
  m.impl(
      "_window_attention_weights_backward",
      WindowAttentionWeightsBackward<&backward_meta>::call);
}

TORCH_LIBRARY_IMPL(subquad, CompositeExplicitAutograd, m) {
  m.impl(
      "window_attention_weights",
      WindowAttentionWeightsPublic<&call_forward>::call);
}

TORCH_LIBRARY_IMPL(subquad, Autograd, m) {
  m.impl(
      "window_attention_weights",
      WindowAttentionWeightsPublic<&weights_autograd>::call);
  m.impl(
      "_window_attention_weights_forward",
      torch::autograd::autogradNotImplementedFallback());
  m.impl(
      "_window_attention_weights_backward",
      torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(subquad, AutocastCPU, m) {
  m.impl(
      "window_attention_weights",
      WindowAttentionWeightsPublic<&weights_autocast<at::kCPU>>::call);
}

TORCH_LIBRARY_IMPL(subquad, AutocastCUDA, m) {
  m.impl(
      "window_attention_weights",
      WindowAttentionWeightsPublic<&weights_autocast<at::kCUDA>>::call);
}

} // namespace

} // namespace subquad
