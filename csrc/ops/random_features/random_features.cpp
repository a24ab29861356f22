#include "ops/random_features/random_features.h"

#include <ATen/OpMathType.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>

#include "ops/checks.h"
#include "ops/layout.h"
#include "ops/random_features/signatures.h"
#include "ops/spans.h"

namespace subquad {

namespace {

constexpr const char* kOp = "random_features";

c10::SymInt rows_of(
    const RandomFeaturesInputs& inputs,
    const RandomFeaturesOptions& options) {
  return options.packed ? options.spans->sym_size(0) : inputs.input.sym_size(0);
}

void check_initial_log_scale(
    const RandomFeaturesInputs& inputs,
    const RandomFeaturesOptions& options) {
  const at::Tensor& input = inputs.input;
  const at::Tensor& initial = *inputs.initial_log_scale;
  check_rank(kOp, "initial_log_scale", initial, 2, "[rows, H]");
  check_accumulation_dtype(kOp, "initial_log_scale", initial, input, "input");
  check_same_device(kOp, "initial_log_scale", initial, input, "input");
  check_size(
      kOp,
      "initial_log_scale",
      initial,
      0,
      rows_of(inputs, options),
      "the number of rows");
  check_size(kOp, "initial_log_scale", initial, 1, input.sym_size(1), "H");
  TORCH_CHECK_VALUE(
      options.stabilizer != "none",
      kOp,
      ": initial_log_scale needs a stabilizer, got 'none'");
}

} // namespace

RandomFeatures parse_random_features(const std::string& name) {
  if (name == "positive") {
    return RandomFeatures::kPositive;
  }
  if (name == "trigonometric") {
    return RandomFeatures::kTrigonometric;
  }
  if (name == "sincos") {
    return RandomFeatures::kSinCos;
  }
  TORCH_CHECK_VALUE(
      name == "relu",
      kOp,
      ": kind must be 'positive', 'trigonometric', 'sincos' or 'relu', got '",
      name,
      "'");
  return RandomFeatures::kRelu;
}

Stabilizer parse_stabilizer(const std::string& name) {
  if (name == "none") {
    return Stabilizer::kNone;
  }
  if (name == "token") {
    return Stabilizer::kToken;
  }
  if (name == "row") {
    return Stabilizer::kRow;
  }
  TORCH_CHECK_VALUE(
      name == "prefix",
      kOp,
      ": stabilizer must be 'none', 'token', 'row' or 'prefix', got '",
      name,
      "'");
  return Stabilizer::kPrefix;
}

void check_random_features(
    const RandomFeaturesInputs& inputs,
    const RandomFeaturesOptions& options) {
  const at::Tensor& input = inputs.input;
  const at::Tensor& projection = inputs.projection;
  check_rank(kOp, "input", input, 4, "[B, H, L, D]");
  check_floating_point(kOp, "input", input);
  check_rank(kOp, "projection", projection, 3, "[Hp, R, D]");
  check_same_dtype(kOp, "projection", projection, input, "input");
  check_same_device(kOp, "projection", projection, input, "input");
  check_size(kOp, "projection", projection, 2, input.sym_size(3), "D");
  TORCH_CHECK_VALUE(
      projection.sym_size(0) > 0 &&
          input.sym_size(1) % projection.sym_size(0) == 0,
      kOp,
      ": the heads of input must be a multiple of those of projection, got ",
      input.sym_size(1),
      " and ",
      projection.sym_size(0));
  TORCH_CHECK_VALUE(
      projection.sym_size(1) > 0 && input.sym_size(3) > 0,
      kOp,
      ": R and D must be positive, got ",
      projection.sym_size(1),
      " and ",
      input.sym_size(3));
  check_dense_last_axis(kOp, "input", input);
  const RandomFeatures kind = parse_random_features(options.kind);
  const Stabilizer stabilizer = parse_stabilizer(options.stabilizer);
  TORCH_CHECK_VALUE(
      is_exponential(kind) || stabilizer == Stabilizer::kNone,
      kOp,
      ": stabilizer must be 'none' where kind is '",
      options.kind,
      "', got '",
      options.stabilizer,
      "'");
  TORCH_CHECK_VALUE(
      std::isfinite(options.eps),
      kOp,
      ": eps must be finite, got ",
      options.eps);
  TORCH_CHECK_VALUE(
      std::isfinite(options.scale),
      kOp,
      ": scale must be finite, got ",
      options.scale);
  if (inputs.initial_log_scale.has_value()) {
    check_initial_log_scale(inputs, options);
  }
}

RandomFeaturesOutputs empty_random_features_outputs(
    const RandomFeaturesInputs& inputs,
    const RandomFeaturesOptions& options) {
  const at::Tensor& input = inputs.input;
  const c10::SymInt copies =
      random_feature_count(parse_random_features(options.kind), 1);
  return {
      empty_in_layout_of(input, copies * inputs.projection.sym_size(1)),
      at::empty_symint(
          {input.sym_size(0), input.sym_size(1), input.sym_size(2)},
          input.options().dtype(at::toOpMathType(input.scalar_type())))};
}

RandomFeaturesGradientTensors empty_random_features_gradients(
    const RandomFeaturesInputs& inputs,
    std::array<bool, 3> output_mask) {
  const auto none = [&] { return at::empty({0}, inputs.input.options()); };
  const auto dense = [&](const at::Tensor& like) {
    return at::empty_symint(like.sym_sizes(), like.options());
  };
  return {
      output_mask[0]
          ? empty_in_layout_of(inputs.input, inputs.input.sym_size(3))
          : none(),
      output_mask[1] ? dense(inputs.projection) : none(),
      output_mask[2] && inputs.initial_log_scale.has_value()
          ? dense(*inputs.initial_log_scale)
          : none()};
}

RandomFeaturesOptions make_random_features_options(
    const RandomFeaturesInputs& inputs,
    RandomFeaturesOptions options,
    const OptionalTensor& lengths,
    const OptionalTensor& starts,
    const OptionalTensor& cu_seqlens,
    std::optional<double> scale) {
  check_rank(kOp, "input", inputs.input, 4, "[B, H, L, D]");
  options.packed = cu_seqlens.has_value();
  options.spans = make_spans(
      kOp,
      "",
      inputs.input,
      inputs.input.sym_size(2),
      lengths,
      starts,
      cu_seqlens,
      options.order,
      "input");
  options.scale = scale.has_value()
      ? *scale
      : std::pow(
            static_cast<double>(
                inputs.input.sym_size(3).guard_int(__FILE__, __LINE__)),
            -0.25);
  return options;
}

namespace {

RandomFeaturesOutputs forward_meta(
    const RandomFeaturesInputs& inputs,
    const RandomFeaturesOptions& options) {
  check_random_features(inputs, options);
  return empty_random_features_outputs(inputs, options);
}

RandomFeaturesGradientTensors backward_meta(
    const RandomFeaturesSaved& /* saved */,
    const RandomFeaturesInputs& inputs,
    const RandomFeaturesOptions& /* options */,
    std::array<bool, 3> output_mask) {
  return empty_random_features_gradients(inputs, output_mask);
}

RandomFeaturesOutputs call_forward(
    const RandomFeaturesInputs& inputs,
    const RandomFeaturesOptions& options) {
  using Signature = decltype(RandomFeaturesForward<&forward_meta>::call);
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("subquad::_random_features_forward", "")
          .typed<Signature>();
  return op.call(
      inputs.input,
      inputs.projection,
      inputs.initial_log_scale,
      options.kind,
      options.stabilizer,
      options.stabilizer_gradient,
      options.eps,
      options.scale,
      options.spans,
      options.packed,
      options.order);
}

RandomFeaturesGradientTensors call_backward(
    const RandomFeaturesSaved& saved,
    const RandomFeaturesInputs& inputs,
    const RandomFeaturesOptions& options,
    std::array<bool, 3> output_mask) {
  using Signature = decltype(RandomFeaturesBackward<&backward_meta>::call);
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("subquad::_random_features_backward", "")
          .typed<Signature>();
  return op.call(
      saved.grad_features,
      saved.grad_log_scale,
      saved.log_scale,
      inputs.input,
      inputs.projection,
      inputs.initial_log_scale,
      options.kind,
      options.stabilizer,
      options.stabilizer_gradient,
      options.eps,
      options.scale,
      options.spans,
      options.packed,
      options.order,
      output_mask);
}

class RandomFeaturesFunction
    : public torch::autograd::Function<RandomFeaturesFunction> {
 public:
  static constexpr bool is_traceable = true;

  static torch::autograd::variable_list forward(
      torch::autograd::AutogradContext* ctx,
      const at::Tensor& input,
      const at::Tensor& projection,
      const OptionalTensor& initial_log_scale,
      const RandomFeaturesOptions& options) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [features, log_scale] =
        call_forward({input, projection, initial_log_scale}, options);
    ctx->save_for_backward(
        {input,
         projection,
         initial_log_scale.value_or(at::Tensor()),
         log_scale,
         options.spans.value_or(at::Tensor()),
         options.order.value_or(at::Tensor())});
    ctx->saved_data["kind"] = options.kind;
    ctx->saved_data["stabilizer"] = options.stabilizer;
    ctx->saved_data["stabilizer_gradient"] = options.stabilizer_gradient;
    ctx->saved_data["eps"] = options.eps;
    ctx->saved_data["scale"] = options.scale;
    ctx->saved_data["packed"] = options.packed;
    ctx->set_materialize_grads(false);
    return {features, log_scale};
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* ctx,
      const torch::autograd::variable_list& grads) {
    constexpr size_t kArguments = 4;
    torch::autograd::variable_list result(kArguments);
    if (!grads[0].defined() && !grads[1].defined()) {
      return result;
    }
    const auto saved = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    const RandomFeaturesOptions options{
        data["kind"].toStringRef(),
        data["stabilizer"].toStringRef(),
        data["stabilizer_gradient"].toBool(),
        data["eps"].toDouble(),
        data["scale"].toDouble(),
        defined(saved[4]),
        data["packed"].toBool(),
        defined(saved[5])};
    // Autograd numbers the inputs that were given, without the absent ones.
    const std::array<bool, 3> mask{
        ctx->needs_input_grad(0),
        ctx->needs_input_grad(1),
        saved[2].defined() && ctx->needs_input_grad(2)};
    const auto [grad_input, grad_projection, grad_initial] = call_backward(
        {defined(grads[0]), defined(grads[1]), saved[3]},
        {saved[0], saved[1], defined(saved[2])},
        options,
        mask);
    if (mask[0]) {
      result[0] = grad_input;
    }
    if (mask[1]) {
      result[1] = grad_projection;
    }
    if (mask[2]) {
      result[2] = grad_initial;
    }
    return result;
  }
};

RandomFeaturesOutputs features_autograd(
    const RandomFeaturesInputs& inputs,
    const RandomFeaturesOptions& options) {
  const auto outputs = RandomFeaturesFunction::apply(
      inputs.input, inputs.projection, inputs.initial_log_scale, options);
  return {outputs[0], outputs[1]};
}

// The log scale stays wide: what continues a sequence does not lose digits.
template <c10::DispatchKey key, c10::DeviceType device>
RandomFeaturesOutputs features_autocast(
    const RandomFeaturesInputs& inputs,
    const RandomFeaturesOptions& options) {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::DispatchKeySet(key)};
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
  return features_autograd(
      {at::autocast::cached_cast(dtype, inputs.input, device),
       at::autocast::cached_cast(dtype, inputs.projection, device),
       inputs.initial_log_scale},
      options);
}

TORCH_LIBRARY_IMPL(subquad, Meta, m) {
  m.impl(
      "_random_features_forward", RandomFeaturesForward<&forward_meta>::call);
  m.impl(
      "_random_features_backward",
      RandomFeaturesBackward<&backward_meta>::call);
}

TORCH_LIBRARY_IMPL(subquad, CompositeExplicitAutograd, m) {
  m.impl("random_features", RandomFeaturesPublic<&call_forward>::call);
}

TORCH_LIBRARY_IMPL(subquad, Autograd, m) {
  m.impl("random_features", RandomFeaturesPublic<&features_autograd>::call);
  m.impl(
      "_random_features_forward",
      torch::autograd::autogradNotImplementedFallback());
  m.impl(
      "_random_features_backward",
      torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(subquad, AutocastCPU, m) {
  m.impl(
      "random_features",
      RandomFeaturesPublic<
          &features_autocast<c10::DispatchKey::AutocastCPU, at::kCPU>>::call);
}

TORCH_LIBRARY_IMPL(subquad, AutocastCUDA, m) {
  m.impl(
      "random_features",
      RandomFeaturesPublic<
          &features_autocast<c10::DispatchKey::AutocastCUDA, at::kCUDA>>::call);
}

} // namespace

} // namespace subquad
