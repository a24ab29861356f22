#include "ops/projection/projection.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <c10/util/accumulate.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <tuple>

#include "ops/checks.h"
#include "ops/optional.h"

namespace subquad {

namespace {

constexpr const char* kOp = "projection";

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

void check_like_input(
    const char* name,
    const at::Tensor& tensor,
    const at::Tensor& input) {
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == input.scalar_type(),
      kOp,
      ": ",
      name,
      " must have the dtype of input, ",
      input.scalar_type(),
      ", got ",
      tensor.scalar_type());
  TORCH_CHECK_VALUE(
      tensor.device() == input.device(),
      kOp,
      ": ",
      name,
      " must be on the device of input, ",
      input.device(),
      ", got ",
      tensor.device());
}

} // namespace

void check_projection(
    const at::Tensor& input,
    const at::Tensor& weight,
    const OptionalTensor& bias) {
  TORCH_CHECK_VALUE(
      input.dim() > 0, kOp, ": input must be [..., I], got 0 dimensions");
  check_floating_point(kOp, "input", input);
  check_rank(kOp, "weight", weight, 2, "[O, I]");
  check_like_input("weight", weight, input);
  TORCH_CHECK_VALUE(
      input.sym_size(-1) == weight.sym_size(1),
      kOp,
      ": the last axis of input must be I = ",
      weight.sym_size(1),
      ", got ",
      input.sym_size(-1));
  if (bias.has_value()) {
    check_rank(kOp, "bias", *bias, 1, "[O]");
    check_like_input("bias", *bias, input);
    check_size(kOp, "bias", *bias, 0, weight.sym_size(0), "O");
  }
}

std::vector<int64_t> memory_order(const at::Tensor& tensor) {
  std::vector<int64_t> order(tensor.dim());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end() - 1, [&](int64_t a, int64_t b) {
    return tensor.sym_stride(a)
        .sym_gt(tensor.sym_stride(b))
        .guard_or_false(__FILE__, __LINE__);
  });
  return order;
}

std::vector<int64_t> inverse_permutation(const std::vector<int64_t>& order) {
  std::vector<int64_t> inverse(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    inverse[order[i]] = static_cast<int64_t>(i);
  }
  return inverse;
}

at::Tensor readable_matrix(const at::Tensor& matrix) {
  const auto dense = [&](int64_t outer, int64_t inner) {
    return matrix.stride(inner) == 1 &&
        matrix.stride(outer) >= std::max<int64_t>(matrix.size(inner), 1);
  };
  return dense(0, 1) || dense(1, 0) ? matrix : matrix.contiguous();
}

at::Tensor flatten_rows(
    const at::Tensor& tensor,
    const std::vector<int64_t>& order) {
  const auto leading = tensor.sizes().slice(0, tensor.dim() - 1);
  return readable_matrix(tensor.permute(order).reshape(
      {c10::multiply_integers(leading), tensor.size(-1)}));
}

at::Tensor unflatten_rows(
    const at::Tensor& matrix,
    const at::Tensor& like,
    const std::vector<int64_t>& order) {
  auto sizes = like.permute(order).sizes().vec();
  sizes.back() = matrix.size(1);
  return matrix.view(sizes).permute(inverse_permutation(order));
}

namespace {

// [..., width] with the leading axes of `like`.
at::Tensor empty_rows(const at::Tensor& like, const c10::SymInt& width) {
  const std::vector<int64_t> order = memory_order(like);
  std::vector<c10::SymInt> sizes;
  for (const int64_t axis : order) {
    sizes.push_back(like.sym_size(axis));
  }
  sizes.back() = width;
  return at::empty_symint(sizes, like.options())
      .permute(inverse_permutation(order));
}

at::Tensor forward_meta(
    const at::Tensor& input,
    const at::Tensor& weight,
    const OptionalTensor& bias,
    std::optional<bool> /* onednn */) {
  check_projection(input, weight, bias);
  return empty_rows(input, weight.sym_size(0));
}

Gradients backward_meta(
    const at::Tensor& grad_output,
    const OptionalTensor& input,
    const OptionalTensor& weight,
    std::array<bool, 3> output_mask,
    std::optional<bool> /* onednn */) {
  const auto options = grad_output.options();
  const c10::SymInt outputs = grad_output.sym_size(-1);
  Gradients gradients;
  if (output_mask[0]) {
    std::get<0>(gradients) = empty_rows(grad_output, weight->sym_size(1));
  }
  if (output_mask[1]) {
    std::get<1>(gradients) =
        at::empty_symint({outputs, input->sym_size(-1)}, options);
  }
  if (output_mask[2]) {
    std::get<2>(gradients) = at::empty_symint({outputs}, options);
  }
  return gradients;
}

at::Tensor projection(
    const at::Tensor& input,
    const at::Tensor& weight,
    const OptionalTensor& bias) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("subquad::_projection_forward", "")
          .typed<decltype(forward_meta)>();
  return op.call(input, weight, bias, std::nullopt);
}

class Projection : public torch::autograd::Function<Projection> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(
      torch::autograd::AutogradContext* ctx,
      const at::Tensor& input,
      const at::Tensor& weight,
      const OptionalTensor& bias) {
    at::AutoDispatchBelowADInplaceOrView guard;
    // The gradient of each factor needs only the other one.
    ctx->save_for_backward(
        {weight.requires_grad() ? input : at::Tensor(),
         input.requires_grad() ? weight : at::Tensor()});
    ctx->saved_data["bias"] = bias.has_value();
    return projection(input, weight, bias);
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* ctx,
      const torch::autograd::variable_list& grads) {
    static const auto op =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("subquad::_projection_backward", "")
            .typed<decltype(backward_meta)>();
    const auto saved = ctx->get_saved_variables();
    const auto [grad_input, grad_weight, grad_bias] = op.call(
        grads[0],
        defined(saved[0]),
        defined(saved[1]),
        {ctx->needs_input_grad(0),
         ctx->needs_input_grad(1),
         ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2)},
        std::nullopt);
    return {grad_input, grad_weight, grad_bias};
  }
};

at::Tensor projection_autograd(
    const at::Tensor& input,
    const at::Tensor& weight,
    const OptionalTensor& bias) {
  return Projection::apply(input, weight, bias);
}

template <c10::DispatchKey key, c10::DeviceType device>
at::Tensor projection_autocast(
    const at::Tensor& input,
    const at::Tensor& weight,
    const OptionalTensor& bias) {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::DispatchKeySet(key)};
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
  const auto cast = [&](const at::Tensor& tensor) {
    return at::autocast::cached_cast(dtype, tensor, device);
  };
  return projection_autograd(
      cast(input),
      cast(weight),
      bias.has_value() ? OptionalTensor(cast(*bias)) : std::nullopt);
}

TORCH_LIBRARY_IMPL(subquad, Meta, m) {
  m.impl("_projection_forward", &forward_meta);
  m.impl("_projection_backward", &backward_meta);
}

TORCH_LIBRARY_IMPL(subquad, CompositeExplicitAutograd, m) {
  m.impl("projection", &projection);
}

TORCH_LIBRARY_IMPL(subquad, Autograd, m) {
  m.impl("projection", &projection_autograd);
  m.impl(
      "_projection_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl(
      "_projection_backward",
      torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(subquad, AutocastCPU, m) {
  m.impl(
      "projection",
      &projection_autocast<c10::DispatchKey::AutocastCPU, at::kCPU>);
}

TORCH_LIBRARY_IMPL(subquad, AutocastCUDA, m) {
  m.impl(
      "projection",
      &projection_autocast<c10::DispatchKey::AutocastCUDA, at::kCUDA>);
}

} // namespace

} // namespace subquad
