#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "api/subquad.h"

namespace {

at::Tensor projection(
    const at::Tensor& input,
    const at::Tensor& weight,
    const at::Tensor& bias) {
  return subquad::call("projection", {input, weight, bias}).at(0).toTensor();
}

TEST(Projection, EqualsLinear) {
  at::manual_seed(0);
  const auto input = at::randn({3, 7, 16});
  const auto weight = at::randn({5, 16});
  const auto bias = at::randn({5});
  const auto output = projection(input, weight, bias);
  EXPECT_TRUE(output.is_contiguous());
  EXPECT_TRUE(
      at::allclose(output, at::linear(input, weight, bias), 1e-5, 1e-5));
  const auto transposed = projection(input.transpose(0, 1), weight, bias);
  EXPECT_TRUE(transposed.transpose(0, 1).is_contiguous());
  EXPECT_TRUE(at::allclose(transposed.transpose(0, 1), output, 1e-5, 1e-5));
}

TEST(Projection, AutogradWorksWithoutPython) {
  at::manual_seed(1);
  const auto leaf = [](at::IntArrayRef sizes) {
    return at::randn(sizes, at::kDouble).set_requires_grad(true);
  };
  const auto input = leaf({2, 11, 6});
  const auto weight = leaf({4, 6});
  const auto bias = leaf({4});
  const auto grad = at::randn({2, 11, 4}, at::kDouble);
  const auto actual = torch::autograd::grad(
      {projection(input, weight, bias)}, {input, weight, bias}, {grad});
  const auto expected = torch::autograd::grad(
      {at::linear(input, weight, bias)}, {input, weight, bias}, {grad});
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(at::allclose(actual[i], expected[i], 1e-12, 1e-12));
  }
}

TEST(Projection, RefusesAnotherWidth) {
  EXPECT_THROW(
      projection(at::ones({3, 7}), at::ones({5, 8}), at::ones({5})),
      c10::ValueError);
}

} // namespace
