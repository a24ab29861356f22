#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <c10/util/accumulate.h>
#include <torch/library.h>

#include <array>
#include <string_view>
#include <tuple>

#include "ops/projection/projection.h"

namespace subquad {

namespace {

using OptionalTensor = std::optional<at::Tensor>;

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
  return onednn_linear().has_value() &&
      at::globalContext().userEnabledMkldnn();
}

// at::linear calls MKL. On Intel's CPUs, and with AVX2 on AMD's, that reaches 90
// percent of the peak and nothing is to be gained; on AMD's with AVX-512 it
// reaches less than half of it, and oneDNN 70 to 90 percent. Below four rows the
// overhead of oneDNN exceeds the product.
bool prefer_onednn(const at::Tensor& a) {
#if defined(__x86_64__)
  static const bool fast =
      at::get_cpu_capability() == "AVX512" && !__builtin_cpu_is("intel");
#else
  constexpr bool fast = false;
#endif
  return fast && a.scalar_type() == at::kFloat && a.size(0) >= 4 &&
      has_onednn();
}

// a [M, K], b [N, K], bias [N] -> a b^T + bias [M, N]. Without a choice, which
// tests and benchmarks make, the library is a function of CPU, dtype and shape.
at::Tensor product(
    const at::Tensor& a,
    const at::Tensor& b,
    const OptionalTensor& bias,
    std::optional<bool> onednn) {
  if (a.numel() == 0 || b.numel() == 0 || !onednn.value_or(prefer_onednn(a))) {
    return at::linear(a, b, bias);
  }
  TORCH_CHECK_NOT_IMPLEMENTED(
      has_onednn() && a.scalar_type() == at::kFloat,
      "projection: oneDNN needs float32 and a PyTorch with oneDNN enabled, got ",
      a.scalar_type());
  const c10::List<std::optional<at::Scalar>> scalars;
  return onednn_linear()->call(a, b, bias, "none", scalars, "");
}

// [..., N] -> [rows, N], a view where the strides allow one.
at::Tensor flatten(const at::Tensor& tensor) {
  const auto leading = tensor.sizes().slice(0, tensor.dim() - 1);
  return tensor.reshape({c10::multiply_integers(leading), tensor.size(-1)});
}

at::Tensor forward_cpu(
    const at::Tensor& input,
    const at::Tensor& weight,
    const OptionalTensor& bias,
    std::optional<bool> onednn) {
  check_projection(input, weight, bias);
  auto sizes = input.sizes().vec();
  sizes.back() = weight.size(0);
  return product(flatten(input), weight, bias, onednn).view(sizes);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_cpu(
    const at::Tensor& grad_output,
    const OptionalTensor& input,
    const OptionalTensor& weight,
    std::array<bool, 3> output_mask,
    std::optional<bool> onednn) {
  at::Tensor grad = flatten(grad_output);
  at::Tensor grad_input, grad_weight, grad_bias;
  if (output_mask[2]) {
    grad_bias = grad.sum(0);
  }
  // An expanded gradient is no matrix in memory.
  if (grad.stride(1) != 1 || grad.stride(0) < grad.size(1)) {
    grad = grad.contiguous();
  }
  if (output_mask[0]) {
    auto sizes = grad_output.sizes().vec();
    sizes.back() = weight->size(1);
    grad_input = product(grad, weight->t(), std::nullopt, onednn).view(sizes);
  }
  if (output_mask[1]) {
    grad_weight =
        product(grad.t(), flatten(*input).t(), std::nullopt, onednn);
  }
  return {grad_input, grad_weight, grad_bias};
}

TORCH_LIBRARY_IMPL(subquad, CPU, m) {
  m.impl("_projection_forward", &forward_cpu);
  m.impl("_projection_backward", &backward_cpu);
}

} // namespace

} // namespace subquad
