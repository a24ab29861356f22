#include "ops/window_attention/window_attention.h"

#include <ATen/OpMathType.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>

#include "common/index.h"
#include "ops/checks.h"
#include "ops/layout.h"
#include "ops/spans.h"
#include "ops/window_attention/signatures.h"

namespace subquad {

namespace {

constexpr const char* kOp = "window_attention";

void check_tensor(
    const char* name,
    const at::Tensor& tensor,
    const at::Tensor& query,
    int64_t rank,
    const char* layout) {
  check_rank(kOp, name, tensor, rank, layout);
  check_same_dtype(kOp, name, tensor, query);
  check_same_device(kOp, name, tensor, query);
}

// A table shared by the heads or with one entry per head.
void check_head_axis(
    const char* name,
    const at::Tensor& table,
    const c10::SymInt& heads) {
  TORCH_CHECK_VALUE(
      table.sym_size(0) == 1 || table.sym_size(0) == heads,
      kOp,
      ": axis 0 of ",
      name,
      " must be 1 or H = ",
      heads,
      ", got ",
      table.sym_size(0));
}

void check_extent(
    const char* name,
    const c10::SymInt& value,
    int64_t least,
    int64_t most) {
  TORCH_CHECK_VALUE(
      value >= least,
      kOp,
      ": ",
      name,
      least > 0 ? " must be positive, got " : " must not be negative, got ",
      value);
  TORCH_CHECK_VALUE(
      value <= most,
      kOp,
      ": ",
      name,
      " must be at most ",
      most,
      ", got ",
      value);
}

// An offset may come from data, where nothing is known while tracing.
void check_offset(const char* name, const c10::SymInt& value) {
  TORCH_CHECK_VALUE(
      value.sym_ge(-kMostTokens).guard_or_true(__FILE__, __LINE__) &&
          value.sym_le(kMostTokens).guard_or_true(__FILE__, __LINE__),
      kOp,
      ": ",
      name,
      " must lie in [",
      -kMostTokens,
      ", ",
      kMostTokens,
      "], got ",
      value);
}

void check_rule(const WindowAttentionOptions& options) {
  check_extent("block", options.block, 1, kMostTokens);
  check_extent("left", options.left, 0, kMostTokens);
  check_extent("right", options.right, 0, kMostTokens);
  check_offset("query_offset", options.query_offset);
  check_offset("summary_offset", options.summary_offset);
  check_extent("summary_block", options.summary_block, 0, kMostTokens);
  check_extent(
      "summaries_per_block",
      options.summaries_per_block,
      0,
      kMostSummariesPerBlock);
  TORCH_CHECK_VALUE(
      std::isfinite(options.scale),
      kOp,
      ": scale must be finite, got ",
      options.scale);
}

void check_dropout(
    const WindowAttentionOptions& options,
    const at::Tensor& query) {
  TORCH_CHECK_VALUE(
      options.dropout >= 0.0 && options.dropout < 1.0,
      kOp,
      ": dropout must lie in [0, 1), got ",
      options.dropout);
  if (!options.dropout_state.has_value()) {
    TORCH_CHECK_VALUE(
        options.dropout == 0.0,
        kOp,
        ": dropout needs dropout_state = (seed, offset), got none");
    return;
  }
  const at::Tensor& state = *options.dropout_state;
  check_index_dtype(kOp, "dropout_state", state);
  check_same_device(kOp, "dropout_state", state, query);
  check_rank(kOp, "dropout_state", state, 1, "a vector");
  check_size(kOp, "dropout_state", state, 0, 2, "the pair (seed, offset)");
}

void check_summaries(
    const WindowAttentionInputs& inputs,
    const WindowAttentionOptions& options) {
  const at::Tensor& query = inputs.query;
  TORCH_CHECK_VALUE(
      inputs.summary_key.has_value() == inputs.summary_value.has_value(),
      kOp,
      ": summary_key and summary_value come together, got only ",
      inputs.summary_key.has_value() ? "summary_key" : "summary_value");
  if (!inputs.summary_key.has_value()) {
    TORCH_CHECK_VALUE(
        !inputs.summary_relative_key.has_value() &&
            !options.summary_lengths.has_value(),
        kOp,
        ": summary_lengths and summary_relative_key need summary_key, got "
        "none");
    return;
  }
  const at::Tensor& key = *inputs.summary_key;
  const at::Tensor& value = *inputs.summary_value;
  const c10::SymInt rows =
      options.packed ? options.key_spans->sym_size(0) : query.sym_size(0);
  check_tensor("summary_key", key, query, 4, "[B, Hkv, C, D]");
  check_tensor("summary_value", value, query, 4, "[B, Hkv, C, M]");
  check_size(kOp, "summary_key", key, 0, rows, "the number of rows");
  check_size(kOp, "summary_key", key, 1, inputs.key.sym_size(1), "Hkv");
  check_size(kOp, "summary_key", key, 3, query.sym_size(3), "D");
  check_size(kOp, "summary_value", value, 0, rows, "the number of rows");
  check_size(kOp, "summary_value", value, 1, inputs.key.sym_size(1), "Hkv");
  check_size(kOp, "summary_value", value, 2, key.sym_size(2), "C");
  check_size(kOp, "summary_value", value, 3, inputs.value.sym_size(3), "M");
  check_dense_last_axis(kOp, "summary_key", key);
  check_dense_last_axis(kOp, "summary_value", value);
  if (options.summary_lengths.has_value()) {
    const at::Tensor& lengths = *options.summary_lengths;
    check_index_dtype(kOp, "summary_lengths", lengths);
    check_same_device(kOp, "summary_lengths", lengths, query);
    check_rank(kOp, "summary_lengths", lengths, 1, "a vector");
    check_size(kOp, "summary_lengths", lengths, 0, rows, "the number of rows");
  }
  if (inputs.summary_relative_key.has_value()) {
    const at::Tensor& table = *inputs.summary_relative_key;
    check_tensor(
        "summary_relative_key", table, query, 3, "[1 or H, at least C, D]");
    check_head_axis("summary_relative_key", table, query.sym_size(1));
    TORCH_CHECK_VALUE(
        table.sym_size(1) >= key.sym_size(2),
        kOp,
        ": axis 1 of summary_relative_key must be at least C = ",
        key.sym_size(2),
        ", got ",
        table.sym_size(1));
    check_size(kOp, "summary_relative_key", table, 2, query.sym_size(3), "D");
  }
}

void check_tables(
    const WindowAttentionInputs& inputs,
    const WindowAttentionOptions& options) {
  const at::Tensor& query = inputs.query;
  const c10::SymInt heads = query.sym_size(1);
  const c10::SymInt slots = options.left + options.block + options.right;
  if (inputs.bias.has_value()) {
    const at::Tensor& bias = *inputs.bias;
    check_tensor(
        "bias", bias, query, 3, "[1 or H, block, left + block + right]");
    check_head_axis("bias", bias, heads);
    check_size(kOp, "bias", bias, 1, options.block, "block");
    check_size(kOp, "bias", bias, 2, slots, "left + block + right");
  }
  if (inputs.key_bias.has_value()) {
    const at::Tensor& bias = *inputs.key_bias;
    check_tensor("key_bias", bias, query, 2, "[B, S]");
    check_size(kOp, "key_bias", bias, 0, query.sym_size(0), "B");
    check_size(kOp, "key_bias", bias, 1, inputs.key.sym_size(2), "S");
  }
  if (inputs.relative_key.has_value()) {
    const at::Tensor& table = *inputs.relative_key;
    check_tensor(
        "relative_key", table, query, 3, "[1 or H, left + block + right, D]");
    check_head_axis("relative_key", table, heads);
    check_size(kOp, "relative_key", table, 1, slots, "left + block + right");
    check_size(kOp, "relative_key", table, 2, query.sym_size(3), "D");
  }
}

void check_rows(
    const WindowAttentionInputs& inputs,
    const WindowAttentionOptions& options) {
  const at::Tensor& query = inputs.query;
  if (options.query_position.has_value()) {
    const at::Tensor& position = *options.query_position;
    check_index_dtype(kOp, "query_position", position);
    check_same_device(kOp, "query_position", position, query);
    TORCH_CHECK_VALUE(
        position.dim() == 1 || position.dim() == 2,
        kOp,
        ": query_position must be [L] or [B, L], got ",
        position.dim(),
        " dimensions");
    check_size(
        kOp,
        "query_position",
        position,
        position.dim() - 1,
        query.sym_size(2),
        "L");
    if (position.dim() == 2) {
      check_size(kOp, "query_position", position, 0, query.sym_size(0), "B");
    }
    TORCH_CHECK_VALUE(
        options.query_offset == 0,
        kOp,
        ": query_position excludes query_offset, got query_offset ",
        options.query_offset);
  }
  if (options.packed && options.query_spans.has_value()) {
    TORCH_CHECK_VALUE(
        options.query_spans->sym_size(0) == options.key_spans->sym_size(0),
        kOp,
        ": cu_seqlens and query_cu_seqlens must name the same rows, got ",
        options.key_spans->sym_size(0),
        " and ",
        options.query_spans->sym_size(0));
  }
}

} // namespace

void check_window_attention(
    const WindowAttentionInputs& inputs,
    const WindowAttentionOptions& options) {
  const at::Tensor& query = inputs.query;
  const at::Tensor& key = inputs.key;
  const at::Tensor& value = inputs.value;
  check_rank(kOp, "query", query, 4, "[B, H, L, D]");
  check_floating_point(kOp, "query", query);
  check_tensor("key", key, query, 4, "[B, Hkv, S, D]");
  check_tensor("value", value, query, 4, "[B, Hkv, S, M]");
  check_size(kOp, "key", key, 0, query.sym_size(0), "B");
  check_size(kOp, "value", value, 0, query.sym_size(0), "B");
  check_size(kOp, "key", key, 3, query.sym_size(3), "D");
  check_size(kOp, "value", value, 1, key.sym_size(1), "Hkv");
  check_size(kOp, "value", value, 2, key.sym_size(2), "S");
  check_head_groups(kOp, query, key);
  check_positive_widths(kOp, query, value);
  check_dense_last_axis(kOp, "query", query);
  check_dense_last_axis(kOp, "key", key);
  check_dense_last_axis(kOp, "value", value);
  check_rule(options);
  check_dropout(options, query);
  check_rows(inputs, options);
  check_tables(inputs, options);
  check_summaries(inputs, options);
}

std::tuple<at::Tensor, at::Tensor> empty_window_attention_outputs(
    const WindowAttentionInputs& inputs) {
  const at::Tensor& query = inputs.query;
  return {
      empty_in_layout_of(query, inputs.value.sym_size(3)),
      at::empty_symint(
          {query.sym_size(0), query.sym_size(1), query.sym_size(2)},
          query.options().dtype(at::toOpMathType(query.scalar_type())))};
}

WindowAttentionGradientTensors empty_window_attention_gradients(
    const WindowAttentionInputs& inputs,
    std::array<bool, 9> output_mask) {
  const auto none = [&] { return at::empty({0}, inputs.query.options()); };
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
      in_layout(0, inputs.query),
      in_layout(1, inputs.key),
      in_layout(2, inputs.value),
      dense(3, inputs.bias),
      dense(4, inputs.key_bias),
      dense(5, inputs.relative_key),
      dense(6, inputs.summary_key),
      dense(7, inputs.summary_value),
      dense(8, inputs.summary_relative_key)};
}

WindowAttentionOptions make_window_attention_options(
    const WindowAttentionInputs& inputs,
    WindowAttentionOptions options,
    const OptionalTensor& lengths,
    const OptionalTensor& starts,
    const OptionalTensor& query_lengths,
    const OptionalTensor& query_starts,
    const OptionalTensor& order,
    const OptionalTensor& query_order,
    const OptionalTensor& cu_seqlens,
    const OptionalTensor& query_cu_seqlens,
    std::optional<double> scale) {
  check_rank(kOp, "query", inputs.query, 4, "[B, H, L, D]");
  check_rank(kOp, "key", inputs.key, 4, "[B, Hkv, S, D]");
  TORCH_CHECK_VALUE(
      cu_seqlens.has_value() || !query_cu_seqlens.has_value(),
      kOp,
      ": query_cu_seqlens needs cu_seqlens, got none");
  options.packed = cu_seqlens.has_value();
  TORCH_CHECK_VALUE(
      !options.packed ||
          (!query_lengths.has_value() && !query_starts.has_value()),
      kOp,
      ": packed rows take query_cu_seqlens, got query_lengths or query_starts");
  options.key_spans = make_spans(
      kOp,
      "",
      inputs.query,
      inputs.key.sym_size(2),
      lengths,
      starts,
      cu_seqlens,
      order);
  options.query_spans = make_spans(
      kOp,
      "query_",
      inputs.query,
      inputs.query.sym_size(2),
      query_lengths,
      query_starts,
      query_cu_seqlens.has_value() ? query_cu_seqlens : cu_seqlens,
      query_order);
  options.key_order = order;
  options.query_order = query_order;
  options.scale = scale.has_value() ? *scale
                                    : 1.0 /
          std::sqrt(static_cast<double>(
              inputs.query.sym_size(3).guard_int(__FILE__, __LINE__)));
  return options;
}

namespace {

using Outputs = std::tuple<at::Tensor, at::Tensor>;

Outputs forward_meta(
    const WindowAttentionInputs& inputs,
    const WindowAttentionOptions& options) {
  check_window_attention(inputs, options);
  return empty_window_attention_outputs(inputs);
}

WindowAttentionGradientTensors backward_meta(
    const WindowAttentionSaved& /* saved */,
    const WindowAttentionInputs& inputs,
    const WindowAttentionOptions& /* options */,
    std::array<bool, 9> output_mask) {
  return empty_window_attention_gradients(inputs, output_mask);
}

Outputs call_forward(
    const WindowAttentionInputs& inputs,
    const WindowAttentionOptions& options) {
  using Signature = decltype(WindowAttentionForward<&forward_meta>::call);
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("subquad::_window_attention_forward", "")
          .typed<Signature>();
  return op.call(
      inputs.query,
      inputs.key,
      inputs.value,
      inputs.bias,
      inputs.key_bias,
      inputs.relative_key,
      inputs.summary_key,
      inputs.summary_value,
      inputs.summary_relative_key,
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
      options.summary_lengths,
      options.summary_offset,
      options.summary_block,
      options.summaries_per_block,
      options.dropout,
      options.dropout_state,
      options.scale);
}

WindowAttentionGradientTensors call_backward(
    const WindowAttentionSaved& saved,
    const WindowAttentionInputs& inputs,
    const WindowAttentionOptions& options,
    std::array<bool, 9> output_mask) {
  using Signature = decltype(WindowAttentionBackward<&backward_meta>::call);
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("subquad::_window_attention_backward", "")
          .typed<Signature>();
  return op.call(
      saved.grad_output,
      saved.grad_lse,
      saved.output,
      saved.lse,
      inputs.query,
      inputs.key,
      inputs.value,
      inputs.bias,
      inputs.key_bias,
      inputs.relative_key,
      inputs.summary_key,
      inputs.summary_value,
      inputs.summary_relative_key,
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
      options.summary_lengths,
      options.summary_offset,
      options.summary_block,
      options.summaries_per_block,
      options.dropout,
      options.dropout_state,
      options.scale,
      output_mask);
}

class WindowAttention : public torch::autograd::Function<WindowAttention> {
 public:
  static constexpr bool is_traceable = true;

  static torch::autograd::variable_list forward(
      torch::autograd::AutogradContext* ctx,
      const at::Tensor& query,
      const at::Tensor& key,
      const at::Tensor& value,
      const OptionalTensor& bias,
      const OptionalTensor& key_bias,
      const OptionalTensor& relative_key,
      const OptionalTensor& summary_key,
      const OptionalTensor& summary_value,
      const OptionalTensor& summary_relative_key,
      const WindowAttentionOptions& options) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const WindowAttentionInputs inputs{
        query,
        key,
        value,
        bias,
        key_bias,
        relative_key,
        summary_key,
        summary_value,
        summary_relative_key};
    auto [output, lse] = call_forward(inputs, options);
    const auto optional = [](const OptionalTensor& tensor) {
      return tensor.value_or(at::Tensor());
    };
    ctx->save_for_backward(
        {query,
         key,
         value,
         optional(bias),
         optional(key_bias),
         optional(relative_key),
         optional(summary_key),
         optional(summary_value),
         optional(summary_relative_key),
         output,
         lse,
         optional(options.query_position),
         optional(options.query_spans),
         optional(options.key_spans),
         optional(options.query_order),
         optional(options.key_order),
         optional(options.summary_lengths),
         optional(options.dropout_state)});
    ctx->saved_data["block"] = options.block;
    ctx->saved_data["left"] = options.left;
    ctx->saved_data["right"] = options.right;
    ctx->saved_data["causal"] = options.causal;
    ctx->saved_data["query_offset"] = options.query_offset;
    ctx->saved_data["packed"] = options.packed;
    ctx->saved_data["summary_offset"] = options.summary_offset;
    ctx->saved_data["summary_block"] = options.summary_block;
    ctx->saved_data["summaries_per_block"] = options.summaries_per_block;
    ctx->saved_data["dropout"] = options.dropout;
    ctx->saved_data["scale"] = options.scale;
    ctx->set_materialize_grads(false);
    return {output, lse};
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* ctx,
      const torch::autograd::variable_list& grads) {
    constexpr size_t kDifferentiable = 9;
    constexpr size_t kArguments = 10;
    torch::autograd::variable_list result(kArguments);
    if (!grads[0].defined() && !grads[1].defined()) {
      return result;
    }
    const auto saved = ctx->get_saved_variables();
    const WindowAttentionInputs inputs{
        saved[0],
        saved[1],
        saved[2],
        defined(saved[3]),
        defined(saved[4]),
        defined(saved[5]),
        defined(saved[6]),
        defined(saved[7]),
        defined(saved[8])};
    auto& data = ctx->saved_data;
    const WindowAttentionOptions options{
        data["block"].toSymInt(),
        data["left"].toSymInt(),
        data["right"].toSymInt(),
        data["causal"].toBool(),
        data["query_offset"].toSymInt(),
        defined(saved[11]),
        defined(saved[12]),
        defined(saved[13]),
        data["packed"].toBool(),
        defined(saved[14]),
        defined(saved[15]),
        defined(saved[16]),
        data["summary_offset"].toSymInt(),
        data["summary_block"].toSymInt(),
        data["summaries_per_block"].toSymInt(),
        data["dropout"].toDouble(),
        defined(saved[17]),
        data["scale"].toDouble()};
    // Autograd numbers the inputs that were given, without the absent ones.
    std::array<bool, kDifferentiable> mask{};
    size_t given = 0;
    for (size_t i = 0; i < kDifferentiable; ++i) {
      mask[i] = saved[i].defined() && ctx->needs_input_grad(given++);
    }
    const auto gradients = call_backward(
        {defined(grads[0]), defined(grads[1]), saved[9], saved[10]},
        inputs,
        options,
        mask);
    const std::array<at::Tensor, kDifferentiable> list = std::apply(
        [](const auto&... tensors) {
          return std::array<at::Tensor, kDifferentiable>{tensors...};
        },
        gradients);
    for (size_t i = 0; i < kDifferentiable; ++i) {
      if (mask[i]) {
        result[i] = list[i];
      }
    }
    return result;
  }
};

Outputs attention_with_lse_autograd(
    const WindowAttentionInputs& inputs,
    const WindowAttentionOptions& options) {
  const auto outputs = WindowAttention::apply(
      inputs.query,
      inputs.key,
      inputs.value,
      inputs.bias,
      inputs.key_bias,
      inputs.relative_key,
      inputs.summary_key,
      inputs.summary_value,
      inputs.summary_relative_key,
      options);
  return {outputs[0], outputs[1]};
}

at::Tensor attention_autograd(
    const WindowAttentionInputs& inputs,
    const WindowAttentionOptions& options) {
  return std::get<0>(attention_with_lse_autograd(inputs, options));
}

at::Tensor attention(
    const WindowAttentionInputs& inputs,
    const WindowAttentionOptions& options) {
  return std::get<0>(call_forward(inputs, options));
}

// Autocast runs the composite below with the inputs in the lower precision.
template <c10::DeviceType device>
WindowAttentionInputs cast_inputs(const WindowAttentionInputs& inputs) {
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
  const auto cast = [&](const at::Tensor& tensor) {
    return at::autocast::cached_cast(dtype, tensor, device);
  };
  const auto cast_optional = [&](const OptionalTensor& tensor) {
    return tensor.has_value() ? OptionalTensor(cast(*tensor)) : std::nullopt;
  };
  return {
      cast(inputs.query),
      cast(inputs.key),
      cast(inputs.value),
      cast_optional(inputs.bias),
      cast_optional(inputs.key_bias),
      cast_optional(inputs.relative_key),
      cast_optional(inputs.summary_key),
      cast_optional(inputs.summary_value),
      cast_optional(inputs.summary_relative_key)};
}

template <c10::DeviceType device>
at::Tensor attention_autocast(
    const WindowAttentionInputs& inputs,
    const WindowAttentionOptions& options) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKeySet(
      device == at::kCUDA ? c10::DispatchKey::AutocastCUDA
                          : c10::DispatchKey::AutocastCPU));
  return attention_autograd(cast_inputs<device>(inputs), options);
}

template <c10::DeviceType device>
Outputs attention_with_lse_autocast(
    const WindowAttentionInputs& inputs,
    const WindowAttentionOptions& options) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKeySet(
      device == at::kCUDA ? c10::DispatchKey::AutocastCUDA
                          : c10::DispatchKey::AutocastCPU));
  return attention_with_lse_autograd(cast_inputs<device>(inputs), options);
}

TORCH_LIBRARY_IMPL(subquad, Meta, m) {
  m.impl(
      "_window_attention_forward", WindowAttentionForward<&forward_meta>::call);
  m.impl(
      "_window_attention_backward",
      WindowAttentionBackward<&backward_meta>::call);
}

TORCH_LIBRARY_IMPL(subquad, CompositeExplicitAutograd, m) {
  m.impl("window_attention", WindowAttentionPublic<&attention>::call);
  m.impl(
      "window_attention_with_lse", WindowAttentionPublic<&call_forward>::call);
}

TORCH_LIBRARY_IMPL(subquad, Autograd, m) {
  m.impl("window_attention", WindowAttentionPublic<&attention_autograd>::call);
  m.impl(
      "window_attention_with_lse",
      WindowAttentionPublic<&attention_with_lse_autograd>::call);
  m.impl(
      "_window_attention_forward",
      torch::autograd::autogradNotImplementedFallback());
  m.impl(
      "_window_attention_backward",
      torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(subquad, AutocastCPU, m) {
  m.impl(
      "window_attention",
      WindowAttentionPublic<&attention_autocast<at::kCPU>>::call);
  m.impl(
      "window_attention_with_lse",
      WindowAttentionPublic<&attention_with_lse_autocast<at::kCPU>>::call);
}

TORCH_LIBRARY_IMPL(subquad, AutocastCUDA, m) {
  m.impl(
      "window_attention",
      WindowAttentionPublic<&attention_autocast<at::kCUDA>>::call);
  m.impl(
      "window_attention_with_lse",
      WindowAttentionPublic<&attention_with_lse_autocast<at::kCUDA>>::call);
}

} // namespace

} // namespace subquad
