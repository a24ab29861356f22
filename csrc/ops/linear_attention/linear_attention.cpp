#include "ops/linear_attention/linear_attention.h"

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
#include "ops/linear_attention/signatures.h"
#include "ops/spans.h"

namespace subquad {

namespace {

constexpr const char* kOp = "linear_attention";

struct NamedMap {
  const char* name;
  FeatureMap map;
};
constexpr NamedMap kMaps[] = {
    {"identity", FeatureMap::kIdentity},
    {"relu", FeatureMap::kRelu},
    {"elu", FeatureMap::kElu},
    {"sigmoid", FeatureMap::kSigmoid},
    {"exp", FeatureMap::kExp},
    {"softmax", FeatureMap::kSoftmax},
    {"dpfp", FeatureMap::kDpfp}};

} // namespace

FeatureMap parse_feature_map(const char* argument, const std::string& name) {
  for (const NamedMap& known : kMaps) {
    if (name == known.name) {
      return known.map;
    }
  }
  TORCH_CHECK_VALUE(
      false,
      kOp,
      ": ",
      argument,
      " must be identity, relu, elu, sigmoid, exp, softmax or dpfp, got ",
      name);
}

namespace {

void check_tensor(
    const char* name,
    const at::Tensor& tensor,
    const at::Tensor& query,
    const char* layout) {
  check_rank(kOp, name, tensor, 4, layout);
  check_same_dtype(kOp, name, tensor, query);
  check_same_device(kOp, name, tensor, query);
}

// A table in the dtype that sums are kept in.
void check_wide(
    const char* name,
    const at::Tensor& tensor,
    const at::Tensor& query,
    int64_t rank,
    const char* layout) {
  check_rank(kOp, name, tensor, rank, layout);
  check_accumulation_dtype(kOp, name, tensor, query);
  check_same_device(kOp, name, tensor, query);
}

void check_number(const char* name, double value) {
  TORCH_CHECK_VALUE(
      std::isfinite(value), kOp, ": ", name, " must be finite, got ", value);
}

void check_options(
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options) {
  TORCH_CHECK_VALUE(
      options.blindspot >= 1 && options.blindspot <= kMostTokens,
      kOp,
      ": blindspot must lie in [1, ",
      kMostTokens,
      "], got ",
      options.blindspot);
  TORCH_CHECK_VALUE(
      options.causal || options.blindspot == 1,
      kOp,
      ": blindspot needs causal, got blindspot ",
      options.blindspot);
  TORCH_CHECK_VALUE(
      std::isfinite(options.floor) && options.floor >= 0.0,
      kOp,
      ": floor must be finite and not negative, got ",
      options.floor);
  check_number("scale", options.scale);
  check_number("feature_offset", options.feature_offset);
  TORCH_CHECK_VALUE(
      !options.causal || inputs.query.sym_size(2) == inputs.key.sym_size(2),
      kOp,
      ": causal queries and keys are the same tokens, got L = ",
      inputs.query.sym_size(2),
      " and S = ",
      inputs.key.sym_size(2));
  if (options.packed) {
    TORCH_CHECK_VALUE(
        options.query_spans->sym_size(0) == options.key_spans->sym_size(0),
        kOp,
        ": cu_seqlens and query_cu_seqlens must name the same rows, got ",
        options.key_spans->sym_size(0),
        " and ",
        options.query_spans->sym_size(0));
  }
}

c10::SymInt features_of(
    const char* argument,
    const std::string& name,
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options) {
  const c10::SymInt width = inputs.query.sym_size(3);
  const FeatureMap map = parse_feature_map(argument, name);
  const c10::SymInt copies = options.query_weight.has_value()
      ? options.query_weight->sym_size(2)
      : c10::SymInt(1);
  return copies *
      (map == FeatureMap::kDpfp ? 2 * width * options.feature_degree : width);
}

void check_features(
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options) {
  const FeatureMap query_map =
      parse_feature_map("query_map", options.query_map);
  const FeatureMap key_map = parse_feature_map("key_map", options.key_map);
  TORCH_CHECK_VALUE(
      (query_map == FeatureMap::kDpfp) == (key_map == FeatureMap::kDpfp),
      kOp,
      ": query_map and key_map must give as many features, got ",
      options.query_map,
      " and ",
      options.key_map);
  if (query_map == FeatureMap::kDpfp) {
    TORCH_CHECK_VALUE(
        options.feature_degree >= 1 &&
            options.feature_degree < 2 * inputs.query.sym_size(3),
        kOp,
        ": feature_degree must lie in [1, 2 * D), got ",
        options.feature_degree);
  } else {
    TORCH_CHECK_VALUE(
        options.feature_degree == 1,
        kOp,
        ": feature_degree needs the map dpfp, got ",
        options.feature_degree);
  }
  TORCH_CHECK_VALUE(
      options.query_weight.has_value() == options.key_weight.has_value(),
      kOp,
      ": query_weight and key_weight come together, got only ",
      options.query_weight.has_value() ? "query_weight" : "key_weight");
  if (!options.query_weight.has_value()) {
    return;
  }
  const auto check = [&](const char* name,
                         const at::Tensor& weight,
                         const c10::SymInt& tokens,
                         const char* meaning) {
    check_wide(name, weight, inputs.query, 3, "[1 or B, tokens, C]");
    TORCH_CHECK_VALUE(
        weight.sym_size(0) == 1 ||
            weight.sym_size(0) == inputs.query.sym_size(0),
        kOp,
        ": axis 0 of ",
        name,
        " must be 1 or B = ",
        inputs.query.sym_size(0),
        ", got ",
        weight.sym_size(0));
    check_size(kOp, name, weight, 1, tokens, meaning);
  };
  check("query_weight", *options.query_weight, inputs.query.sym_size(2), "L");
  check("key_weight", *options.key_weight, inputs.key.sym_size(2), "S");
  TORCH_CHECK_VALUE(
      options.query_weight->sym_size(2) > 0,
      kOp,
      ": query_weight must have at least one copy, got 0");
  check_size(
      kOp,
      "key_weight",
      *options.key_weight,
      2,
      options.query_weight->sym_size(2),
      "C");
}

void check_log_scale(
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options) {
  if (!inputs.key_log_scale.has_value()) {
    TORCH_CHECK_VALUE(
        !inputs.state_log_scale.has_value(),
        kOp,
        ": state_log_scale needs key_log_scale, got none");
    return;
  }
  TORCH_CHECK_VALUE(
      options.causal && options.blindspot == 1,
      kOp,
      ": key_log_scale needs causal and a blindspot of 1, got causal ",
      options.causal,
      " and blindspot ",
      options.blindspot);
  const at::Tensor& log_scale = *inputs.key_log_scale;
  check_wide("key_log_scale", log_scale, inputs.query, 3, "[B, Hkv, S]");
  check_size(kOp, "key_log_scale", log_scale, 0, inputs.query.sym_size(0), "B");
  check_size(kOp, "key_log_scale", log_scale, 1, inputs.key.sym_size(1), "Hkv");
  check_size(kOp, "key_log_scale", log_scale, 2, inputs.key.sym_size(2), "S");
}

void check_state(
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options) {
  TORCH_CHECK_VALUE(
      inputs.state_kv.has_value() == inputs.state_k.has_value(),
      kOp,
      ": state_kv and state_k come together, got only ",
      inputs.state_kv.has_value() ? "state_kv" : "state_k");
  TORCH_CHECK_VALUE(
      inputs.state_kv.has_value() || !inputs.state_log_scale.has_value(),
      kOp,
      ": state_log_scale needs state_kv and state_k, got none");
  if (!inputs.state_kv.has_value()) {
    return;
  }
  const c10::SymInt rows = options.packed ? options.key_spans->sym_size(0)
                                          : inputs.query.sym_size(0);
  const c10::SymInt heads = inputs.key.sym_size(1);
  const c10::SymInt features =
      features_of("query_map", options.query_map, inputs, options);
  const at::Tensor& kv = *inputs.state_kv;
  check_wide("state_kv", kv, inputs.query, 4, "[R, Hkv, F, M]");
  check_size(kOp, "state_kv", kv, 0, rows, "the number of rows");
  check_size(kOp, "state_kv", kv, 1, heads, "Hkv");
  check_size(kOp, "state_kv", kv, 2, features, "the number of features");
  check_size(kOp, "state_kv", kv, 3, inputs.value.sym_size(3), "M");
  const at::Tensor& k = *inputs.state_k;
  check_wide("state_k", k, inputs.query, 3, "[R, Hkv, F]");
  check_size(kOp, "state_k", k, 0, rows, "the number of rows");
  check_size(kOp, "state_k", k, 1, heads, "Hkv");
  check_size(kOp, "state_k", k, 2, features, "the number of features");
  TORCH_CHECK_VALUE(
      inputs.key_log_scale.has_value() == inputs.state_log_scale.has_value(),
      kOp,
      ": with key_log_scale a state has a state_log_scale, got none");
  if (inputs.state_log_scale.has_value()) {
    const at::Tensor& log_scale = *inputs.state_log_scale;
    check_wide("state_log_scale", log_scale, inputs.query, 2, "[R, Hkv]");
    check_size(
        kOp, "state_log_scale", log_scale, 0, rows, "the number of rows");
    check_size(kOp, "state_log_scale", log_scale, 1, heads, "Hkv");
  }
}

} // namespace

void check_linear_attention(
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options) {
  const at::Tensor& query = inputs.query;
  const at::Tensor& key = inputs.key;
  const at::Tensor& value = inputs.value;
  check_rank(kOp, "query", query, 4, "[B, H, L, D]");
  check_floating_point(kOp, "query", query);
  check_tensor("key", key, query, "[B, Hkv, S, D]");
  check_tensor("value", value, query, "[B, Hkv, S, M]");
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
  check_options(inputs, options);
  check_features(inputs, options);
  check_log_scale(inputs, options);
  check_state(inputs, options);
}

LinearAttentionOutputs empty_linear_attention_outputs(
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options) {
  const at::Tensor& query = inputs.query;
  const auto wide =
      query.options().dtype(at::toOpMathType(query.scalar_type()));
  const c10::SymInt rows =
      options.packed ? options.key_spans->sym_size(0) : query.sym_size(0);
  const c10::SymInt heads = inputs.key.sym_size(1);
  const c10::SymInt features =
      features_of("query_map", options.query_map, inputs, options);
  const c10::SymInt width = inputs.value.sym_size(3);
  return {
      empty_in_layout_of(query, width),
      at::empty_symint(
          {query.sym_size(0), query.sym_size(1), query.sym_size(2)}, wide),
      at::empty_symint({rows, heads, features, width}, wide),
      at::empty_symint({rows, heads, features}, wide),
      inputs.key_log_scale.has_value() ? at::empty_symint({rows, heads}, wide)
                                       : at::empty({0}, wide)};
}

LinearAttentionGradientTensors empty_linear_attention_gradients(
    const LinearAttentionInputs& inputs,
    std::array<bool, 7> output_mask) {
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
      dense(3, inputs.key_log_scale),
      dense(4, inputs.state_kv),
      dense(5, inputs.state_k),
      dense(6, inputs.state_log_scale)};
}

LinearAttentionOptions make_linear_attention_options(
    const LinearAttentionInputs& inputs,
    LinearAttentionOptions options,
    const LinearAttentionRows& rows) {
  check_rank(kOp, "query", inputs.query, 4, "[B, H, L, D]");
  check_rank(kOp, "key", inputs.key, 4, "[B, Hkv, S, D]");
  options.packed = rows.cu_seqlens.has_value();
  options.key_spans = make_spans(
      kOp,
      "",
      inputs.query,
      inputs.key.sym_size(2),
      rows.lengths,
      rows.starts,
      rows.cu_seqlens,
      rows.order);
  options.key_order = rows.order;
  if (options.causal) {
    TORCH_CHECK_VALUE(
        !rows.query_lengths.has_value() && !rows.query_starts.has_value() &&
            !rows.query_order.has_value() && !rows.query_cu_seqlens.has_value(),
        kOp,
        ": causal queries and keys are the same tokens, got rows of queries "
        "alone (query_lengths, query_starts, query_order or query_cu_seqlens)");
    options.query_spans = options.key_spans;
    options.query_order = options.key_order;
    return options;
  }
  TORCH_CHECK_VALUE(
      options.packed || !rows.query_cu_seqlens.has_value(),
      kOp,
      ": query_cu_seqlens needs cu_seqlens, got none");
  TORCH_CHECK_VALUE(
      !options.packed ||
          (!rows.query_lengths.has_value() && !rows.query_starts.has_value()),
      kOp,
      ": packed rows take query_cu_seqlens, got query_lengths or query_starts");
  options.query_spans = make_spans(
      kOp,
      "query_",
      inputs.query,
      inputs.query.sym_size(2),
      rows.query_lengths,
      rows.query_starts,
      rows.query_cu_seqlens.has_value() ? rows.query_cu_seqlens
                                        : rows.cu_seqlens,
      rows.query_order);
  options.query_order = rows.query_order;
  return options;
}

namespace {

LinearAttentionOutputs forward_meta(
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options) {
  check_linear_attention(inputs, options);
  return empty_linear_attention_outputs(inputs, options);
}

LinearAttentionGradientTensors backward_meta(
    const LinearAttentionSaved& /* saved */,
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& /* options */,
    std::array<bool, 7> output_mask) {
  return empty_linear_attention_gradients(inputs, output_mask);
}

LinearAttentionOutputs call_forward(
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options) {
  using Signature = decltype(LinearAttentionForward<&forward_meta>::call);
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("subquad::_linear_attention_forward", "")
          .typed<Signature>();
  return op.call(
      inputs.query,
      inputs.key,
      inputs.value,
      inputs.key_log_scale,
      inputs.state_kv,
      inputs.state_k,
      inputs.state_log_scale,
      options.query_weight,
      options.key_weight,
      options.causal,
      options.blindspot,
      options.normalize,
      options.floor,
      options.scale,
      options.query_map,
      options.key_map,
      options.feature_offset,
      options.feature_degree,
      options.query_spans,
      options.key_spans,
      options.packed,
      options.query_order,
      options.key_order);
}

LinearAttentionGradientTensors call_backward(
    const LinearAttentionSaved& saved,
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options,
    std::array<bool, 7> output_mask) {
  using Signature = decltype(LinearAttentionBackward<&backward_meta>::call);
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("subquad::_linear_attention_backward", "")
          .typed<Signature>();
  const auto& [output, denominator, state_kv, state_k, state_log_scale] =
      saved.outputs;
  return op.call(
      saved.grad_output,
      saved.grad_state_kv,
      saved.grad_state_k,
      saved.grad_state_log_scale,
      output,
      denominator,
      state_kv,
      state_k,
      state_log_scale,
      inputs.query,
      inputs.key,
      inputs.value,
      inputs.key_log_scale,
      inputs.state_kv,
      inputs.state_k,
      inputs.state_log_scale,
      options.query_weight,
      options.key_weight,
      options.causal,
      options.blindspot,
      options.normalize,
      options.floor,
      options.scale,
      options.query_map,
      options.key_map,
      options.feature_offset,
      options.feature_degree,
      options.query_spans,
      options.key_spans,
      options.packed,
      options.query_order,
      options.key_order,
      output_mask);
}

class LinearAttention : public torch::autograd::Function<LinearAttention> {
 public:
  static constexpr bool is_traceable = true;

  static torch::autograd::variable_list forward(
      torch::autograd::AutogradContext* ctx,
      const at::Tensor& query,
      const at::Tensor& key,
      const at::Tensor& value,
      const OptionalTensor& key_log_scale,
      const OptionalTensor& state_kv,
      const OptionalTensor& state_k,
      const OptionalTensor& state_log_scale,
      const LinearAttentionOptions& options) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [output, denominator, new_kv, new_k, new_log_scale] =
        call_forward(
            {query,
             key,
             value,
             key_log_scale,
             state_kv,
             state_k,
             state_log_scale},
            options);
    const auto optional = [](const OptionalTensor& tensor) {
      return tensor.value_or(at::Tensor());
    };
    ctx->save_for_backward(
        {query,
         key,
         value,
         optional(key_log_scale),
         optional(state_kv),
         optional(state_k),
         optional(state_log_scale),
         output,
         denominator,
         new_kv,
         new_k,
         new_log_scale,
         optional(options.query_weight),
         optional(options.key_weight),
         optional(options.query_spans),
         optional(options.key_spans),
         optional(options.query_order),
         optional(options.key_order)});
    ctx->saved_data["causal"] = options.causal;
    ctx->saved_data["blindspot"] = options.blindspot;
    ctx->saved_data["normalize"] = options.normalize;
    ctx->saved_data["floor"] = options.floor;
    ctx->saved_data["scale"] = options.scale;
    ctx->saved_data["query_map"] = options.query_map;
    ctx->saved_data["key_map"] = options.key_map;
    ctx->saved_data["feature_offset"] = options.feature_offset;
    ctx->saved_data["feature_degree"] = options.feature_degree;
    ctx->saved_data["packed"] = options.packed;
    ctx->set_materialize_grads(false);
    if (!key_log_scale.has_value()) {
      ctx->mark_non_differentiable({new_log_scale});
    }
    return {output, new_kv, new_k, new_log_scale};
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* ctx,
      const torch::autograd::variable_list& grads) {
    constexpr size_t kDifferentiable = 7;
    constexpr size_t kArguments = 8;
    torch::autograd::variable_list result(kArguments);
    const auto saved = ctx->get_saved_variables();
    const LinearAttentionInputs inputs{
        saved[0],
        saved[1],
        saved[2],
        defined(saved[3]),
        defined(saved[4]),
        defined(saved[5]),
        defined(saved[6])};
    auto& data = ctx->saved_data;
    const LinearAttentionOptions options{
        defined(saved[12]),
        defined(saved[13]),
        data["causal"].toBool(),
        data["blindspot"].toSymInt(),
        data["normalize"].toBool(),
        data["floor"].toDouble(),
        data["scale"].toDouble(),
        data["query_map"].toStringRef(),
        data["key_map"].toStringRef(),
        data["feature_offset"].toDouble(),
        data["feature_degree"].toInt(),
        defined(saved[14]),
        defined(saved[15]),
        data["packed"].toBool(),
        defined(saved[16]),
        defined(saved[17])};
    // Autograd numbers the inputs that were given, without the absent ones.
    std::array<bool, kDifferentiable> mask{};
    size_t given = 0;
    for (size_t i = 0; i < kDifferentiable; ++i) {
      mask[i] = saved[i].defined() && ctx->needs_input_grad(given++);
    }
    const auto gradients = call_backward(
        {defined(grads[0]),
         defined(grads[1]),
         defined(grads[2]),
         inputs.key_log_scale.has_value() ? defined(grads[3]) : std::nullopt,
         {saved[7], saved[8], saved[9], saved[10], saved[11]}},
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

using WithState = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

WithState attention_with_state(
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options) {
  auto [output, denominator, kv, k, log_scale] = call_forward(inputs, options);
  return {output, kv, k, log_scale};
}

at::Tensor attention(
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options) {
  return std::get<0>(call_forward(inputs, options));
}

WithState attention_with_state_autograd(
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options) {
  const auto outputs = LinearAttention::apply(
      inputs.query,
      inputs.key,
      inputs.value,
      inputs.key_log_scale,
      inputs.state_kv,
      inputs.state_k,
      inputs.state_log_scale,
      options);
  return {outputs[0], outputs[1], outputs[2], outputs[3]};
}

at::Tensor attention_autograd(
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options) {
  return std::get<0>(attention_with_state_autograd(inputs, options));
}

// Tokens meet in the lower precision; what sums are kept in stays as it is.
template <c10::DeviceType device, auto function>
auto attention_autocast(
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKeySet(
      device == at::kCUDA ? c10::DispatchKey::AutocastCUDA
                          : c10::DispatchKey::AutocastCPU));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
  LinearAttentionInputs cast = inputs;
  for (at::Tensor* tensor : {&cast.query, &cast.key, &cast.value}) {
    *tensor = at::autocast::cached_cast(dtype, *tensor, device);
  }
  return function(cast, options);
}

TORCH_LIBRARY_IMPL(subquad, Meta, m) {
  m.impl(
      "_linear_attention_forward", LinearAttentionForward<&forward_meta>::call);
  m.impl(
      "_linear_attention_backward",
      LinearAttentionBackward<&backward_meta>::call);
}

TORCH_LIBRARY_IMPL(subquad, CompositeExplicitAutograd, m) {
  m.impl("linear_attention", LinearAttentionPublic<&attention>::call);
  m.impl(
      "linear_attention_with_state",
      LinearAttentionPublic<&attention_with_state>::call);
}

TORCH_LIBRARY_IMPL(subquad, Autograd, m) {
  m.impl("linear_attention", LinearAttentionPublic<&attention_autograd>::call);
  m.impl(
      "linear_attention_with_state",
      LinearAttentionPublic<&attention_with_state_autograd>::call);
  m.impl(
      "_linear_attention_forward",
      torch::autograd::autogradNotImplementedFallback());
  m.impl(
      "_linear_attention_backward",
      torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(subquad, AutocastCPU, m) {
  m.impl(
      "linear_attention",
      LinearAttentionPublic<
          &attention_autocast<at::kCPU, &attention_autograd>>::call);
  m.impl(
      "linear_attention_with_state",
      LinearAttentionPublic<
          &attention_autocast<at::kCPU, &attention_with_state_autograd>>::call);
}

TORCH_LIBRARY_IMPL(subquad, AutocastCUDA, m) {
  m.impl(
      "linear_attention",
      LinearAttentionPublic<
          &attention_autocast<at::kCUDA, &attention_autograd>>::call);
  m.impl(
      "linear_attention_with_state",
      LinearAttentionPublic<
          &attention_autocast<at::kCUDA, &attention_with_state_autograd>>::
          call);
}

} // namespace

} // namespace subquad
