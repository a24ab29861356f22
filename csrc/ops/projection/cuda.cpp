#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>

#include <array>
#include <tuple>

#include "cuda/context.h"
#include "cuda/dtype.h"
#include "cuda/gemm.h"
#include "cuda/registration.h"
#include "ops/optional.h"
#include "ops/projection/projection.h"

namespace subquad {

namespace {

// result = a b + beta result, for a [M, K] and b [K, N] that readable_matrix
// returned, or their transposes, and a dense result.
void multiply(
    const at::Tensor& a,
    const at::Tensor& b,
    double beta,
    const at::Tensor& result) {
  if (result.numel() == 0) {
    return;
  }
  if (a.size(1) == 0) {
    if (beta == 0.0) {
      result.zero_();
    }
    return;
  }
  // A matrix whose rows are not dense is the transpose of one whose are.
  const auto transposed = [](const at::Tensor& matrix) {
    return matrix.stride(1) != 1 || matrix.stride(0) < matrix.size(1);
  };
  const auto stride = [&](const at::Tensor& matrix) {
    return matrix.stride(transposed(matrix) ? 1 : 0);
  };
  cuda::Gemm product{};
  product.dtype = cuda::scalar_kind(result);
  product.m = a.size(0);
  product.n = b.size(1);
  product.k = a.size(1);
  product.transpose_a = transposed(a);
  product.a = a.const_data_ptr();
  product.a_stride = stride(a);
  product.transpose_b = transposed(b);
  product.b = b.const_data_ptr();
  product.b_stride = stride(b);
  product.beta = beta;
  product.c = result.mutable_data_ptr();
  product.c_stride = result.size(1);
  product.batch = 1;
  cuda::gemm(cuda::row_major(product));
}

at::Tensor forward_cuda(
    const at::Tensor& input,
    const at::Tensor& weight,
    const OptionalTensor& bias,
    std::optional<bool> onednn) {
  const cuda::DeviceGuard guard(input);
  check_projection(input, weight, bias);
  use_onednn(onednn, input);
  const std::vector<int64_t> order = memory_order(input);
  const at::Tensor rows = flatten_rows(input, order); // [rows, I]
  const at::Tensor output =
      at::empty({rows.size(0), weight.size(0)}, input.options());
  // The product is added to the bias before it is rounded.
  if (bias.has_value()) {
    output.copy_(bias->expand_as(output));
  }
  multiply(
      rows, readable_matrix(weight).t(), bias.has_value() ? 1.0 : 0.0, output);
  return unflatten_rows(output, input, order);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_cuda(
    const at::Tensor& grad_output,
    const OptionalTensor& input,
    const OptionalTensor& weight,
    std::array<bool, 3> output_mask,
    std::optional<bool> onednn) {
  const cuda::DeviceGuard guard(grad_output);
  use_onednn(onednn, grad_output);
  const std::vector<int64_t> order = memory_order(grad_output);
  const at::Tensor grad = flatten_rows(grad_output, order); // [rows, O]
  at::Tensor grad_input, grad_weight, grad_bias;
  if (output_mask[0]) {
    const at::Tensor result =
        at::empty({grad.size(0), weight->size(1)}, grad.options());
    multiply(grad, readable_matrix(*weight), 0.0, result);
    grad_input = unflatten_rows(result, grad_output, order);
  }
  if (output_mask[1]) {
    const at::Tensor rows = flatten_rows(*input, order); // [rows, I]
    grad_weight = at::empty({grad.size(1), rows.size(1)}, grad.options());
    multiply(grad.t(), rows, 0.0, grad_weight);
  }
  if (output_mask[2]) {
    grad_bias = grad.sum(0);
  }
  return {grad_input, grad_weight, grad_bias};
}

SUBQUAD_CUDA_IMPL(m) {
  m.impl("_projection_forward", &forward_cuda);
  m.impl("_projection_backward", &backward_cuda);
}

} // namespace

} // namespace subquad
