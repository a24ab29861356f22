#include "ops/cosine_weights/cosine_weights.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/div.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/stack.h>
#include <c10/util/MathConstants.h>
#include <torch/library.h>

#include "ops/checks.h"

namespace subquad {

namespace {

constexpr const char* kOp = "cosine_weights";

} // namespace

void check_cosine_weights(
    const at::Tensor& position,
    const CosineWeightsArguments& arguments) {
  const auto& [max_length, lengths, dtype] = arguments;
  check_index_dtype(kOp, "position", position);
  TORCH_CHECK_VALUE(
      position.dim() == 1 || position.dim() == 2,
      kOp,
      ": position must be [N] or [B, N], got ",
      position.dim(),
      " dimensions");
  TORCH_CHECK_VALUE(
      max_length.has_value() != lengths.has_value(),
      kOp,
      ": either max_length or lengths must be given, got ",
      max_length.has_value() ? "both" : "none");
  if (max_length.has_value()) {
    TORCH_CHECK_VALUE(
        *max_length > 0,
        kOp,
        ": max_length must be positive, got ",
        *max_length);
  } else {
    check_index_dtype(kOp, "lengths", *lengths);
    TORCH_CHECK_VALUE(
        lengths->device() == position.device(),
        kOp,
        ": lengths must be on the device of position, ",
        position.device(),
        ", got ",
        lengths->device());
    TORCH_CHECK_VALUE(
        lengths->dim() == 1 || lengths->dim() == 2,
        kOp,
        ": lengths must be [B] or [B, N], got ",
        lengths->dim(),
        " dimensions");
    if (position.dim() == 2) {
      check_size(kOp, "lengths", *lengths, 0, position.sym_size(0), "B");
    }
    if (lengths->dim() == 2) {
      check_size(kOp, "lengths", *lengths, 1, position.sym_size(-1), "N");
    }
  }
  const at::ScalarType result = dtype.value_or(at::kFloat);
  TORCH_CHECK_TYPE(
      result == at::kFloat || result == at::kDouble,
      kOp,
      ": dtype must be float32 or float64, got ",
      result);
}

at::Tensor empty_cosine_weights(
    const at::Tensor& position,
    const CosineWeightsArguments& arguments) {
  c10::SymInt batch = 1;
  if (position.dim() == 2) {
    batch = position.sym_size(0);
  } else if (arguments.lengths.has_value()) {
    batch = arguments.lengths->sym_size(0);
  }
  return at::empty_symint(
      {batch, position.sym_size(-1), 2},
      position.options().dtype(arguments.dtype.value_or(at::kFloat)));
}

namespace {

at::Tensor cosine_weights_meta(
    const at::Tensor& position,
    std::optional<c10::SymInt> max_length,
    const OptionalTensor& lengths,
    std::optional<at::ScalarType> dtype) {
  const CosineWeightsArguments arguments{max_length, lengths, dtype};
  check_cosine_weights(position, arguments);
  return empty_cosine_weights(position, arguments);
}

// For devices other than the CPU: a few small kernels of PyTorch's.
at::Tensor cosine_weights(
    const at::Tensor& position,
    std::optional<c10::SymInt> max_length,
    const OptionalTensor& lengths,
    std::optional<at::ScalarType> dtype) {
  check_cosine_weights(position, {max_length, lengths, dtype});
  at::Tensor angle = // [N] or [B, N]
      (position.to(at::kDouble) + 1) * (c10::pi<double> / 2);
  if (max_length.has_value()) {
    angle = at::div(angle, c10::Scalar(*max_length)).unsqueeze(0);
  } else {
    const at::Tensor least = lengths->clamp_min(1);
    angle = angle / (least.dim() == 1 ? least.unsqueeze(1) : least);
  }
  if (angle.dim() == 3) {
    angle = angle.squeeze(0);
  }
  return at::stack({at::sin(angle), at::cos(angle)}, -1)
      .to(dtype.value_or(at::kFloat));
}

TORCH_LIBRARY_IMPL(subquad, Meta, m) {
  m.impl("cosine_weights", &cosine_weights_meta);
}

TORCH_LIBRARY_IMPL(subquad, CompositeExplicitAutograd, m) {
  m.impl("cosine_weights", &cosine_weights);
}

TORCH_LIBRARY_IMPL(subquad, Autograd, m) {
  m.impl("cosine_weights", torch::CppFunction::makeFallthrough());
}

} // namespace

} // namespace subquad
