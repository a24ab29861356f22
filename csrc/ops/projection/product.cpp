#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include <array>
#include <string_view>
#include <tuple>

#include "ops/optional.h"
#include "ops/projection/projection.h"

namespace subquad {

namespace {

using OneDnnLinear = at::Tensor(
    const at::Tensor&,
    const at::Tensor&,
    const OptionalTensor&,
    std::string_view,
    c10::List<std::optional<at::Scalar>>,
    std::optional<std::string_view>);

// PyTorch's door to oneDNN's matrix product, if this build has it.
const std::optional<c10::TypedOperatorHandle<OneDnnLinear>>& onednn_linear() {
  static const auto op = [] {
    const auto found = c10::Dispatcher::singleton().findSchema(
        {"mkldnn::_linear_pointwise", ""});
    return found.has_value() &&
            found->hasKernelForDispatchKey(c10::DispatchKey::CPU)
        ? std::make_optional(found->typed<OneDnnLinear>())
        : std::nullopt;
  }();
  return op;
}

bool has_onednn() {
  return onednn_linear().has_value() && at::globalContext().userEnabledMkldnn();
}

// at::linear calls MKL. On AMD's CPUs that reaches 91 to 95 percent of the peak
// with AVX2, where nothing is left to gain, but less than half of it with
// AVX-512, where oneDNN reaches 70 to 90. Intel's CPUs keep Intel's library.
// Below four rows the overhead of oneDNN exceeds the product.
bool prefer_onednn(const at::Tensor& matrix) {
#if defined(__x86_64__)
  static const bool fast =
      at::get_cpu_capability() == "AVX512" && !__builtin_cpu_is("intel");
#else
  constexpr bool fast = false;
#endif
  return fast && matrix.is_cpu() && matrix.scalar_type() == at::kFloat &&
      matrix.size(0) >= 4 && has_onednn();
}

} // namespace

bool use_onednn(std::optional<bool> requested, const at::Tensor& matrix) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !requested.value_or(false) ||
          (has_onednn() && matrix.is_cpu() &&
           matrix.scalar_type() == at::kFloat),
      "projection: oneDNN needs float32 on the CPU and a PyTorch with oneDNN "
      "enabled, got ",
      matrix.scalar_type(),
      " on ",
      matrix.device());
  return requested.value_or(prefer_onednn(matrix));
}

namespace {

// a [M, K], b [N, K], bias [N] -> a b^T + bias [M, N], dense
at::Tensor product(
    const at::Tensor& a,
    const at::Tensor& b,
    const OptionalTensor& bias,
    bool onednn) {
  if (!onednn || a.numel() == 0 || b.numel() == 0) {
    return at::linear(a, b, bias);
  }
  const OptionalTensor dense_bias =
      bias.has_value() ? OptionalTensor(bias->contiguous()) : std::nullopt;
  const c10::List<std::optional<at::Scalar>> scalars;
  return onednn_linear()->call(a, b, dense_bias, "none", scalars, "");
}

at::Tensor forward(
    const at::Tensor& input,
    const at::Tensor& weight,
    const OptionalTensor& bias,
    std::optional<bool> onednn) {
  check_projection(input, weight, bias);
  const std::vector<int64_t> order = memory_order(input);
  const at::Tensor rows = flatten_rows(input, order);
  const at::Tensor output =
      product(rows, readable_matrix(weight), bias, use_onednn(onednn, rows));
  return unflatten_rows(output, input, order);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_output,
    const OptionalTensor& input,
    const OptionalTensor& weight,
    std::array<bool, 3> output_mask,
    std::optional<bool> onednn) {
  const std::vector<int64_t> order = memory_order(grad_output);
  const at::Tensor grad = flatten_rows(grad_output, order); // [rows, O]
  const bool use = use_onednn(onednn, grad);
  at::Tensor grad_input, grad_weight, grad_bias;
  if (output_mask[0]) {
    const at::Tensor columns = readable_matrix(*weight).t(); // [I, O]
    grad_input = unflatten_rows(
        product(grad, columns, std::nullopt, use), grad_output, order);
  }
  if (output_mask[1]) {
    const at::Tensor rows = flatten_rows(*input, order); // [rows, I]
    grad_weight = product(grad.t(), rows.t(), std::nullopt, use);
  }
  if (output_mask[2]) {
    grad_bias = grad.sum(0);
  }
  return {grad_input, grad_weight, grad_bias};
}

// Other devices have one library.
TORCH_LIBRARY_IMPL(subquad, CompositeExplicitAutograd, m) {
  m.impl("_projection_forward", &forward);
  m.impl("_projection_backward", &backward);
}

} // namespace

} // namespace subquad
