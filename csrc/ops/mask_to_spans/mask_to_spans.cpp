#include "ops/mask_to_spans/mask_to_spans.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/checks.h"

namespace subquad {

namespace {

constexpr const char* kOp = "mask_to_spans";

} // namespace

void check_mask_to_spans(const at::Tensor& mask) {
  check_rank(kOp, "mask", mask, 2, "[B, S]");
  const at::ScalarType dtype = mask.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kBool || dtype == at::kByte || dtype == at::kChar ||
          dtype == at::kShort || dtype == at::kInt || dtype == at::kLong ||
          dtype == at::kDouble || dtype == at::kFloat ||
          dtype == at::kBFloat16 || dtype == at::kHalf,
      kOp,
      ": mask must be of bool, of integers or of floating point numbers, got ",
      dtype);
}

std::tuple<at::Tensor, at::Tensor> empty_mask_to_spans_outputs(
    const at::Tensor& mask) {
  const auto options = mask.options().dtype(at::kLong);
  return {
      at::empty_symint({mask.sym_size(0)}, options),
      at::empty_symint(mask.sym_sizes(), options)};
}

namespace {

std::tuple<at::Tensor, at::Tensor> mask_to_spans_meta(const at::Tensor& mask) {
  check_mask_to_spans(mask);
  return empty_mask_to_spans_outputs(mask);
}

TORCH_LIBRARY_IMPL(subquad, Meta, m) {
  m.impl("mask_to_spans", &mask_to_spans_meta);
}

TORCH_LIBRARY_IMPL(subquad, Autograd, m) {
  // Integers have no gradient, whatever the mask is made of.
  m.impl("mask_to_spans", torch::CppFunction::makeFallthrough());
}

} // namespace

} // namespace subquad
