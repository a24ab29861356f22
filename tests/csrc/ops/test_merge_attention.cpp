#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>
#include <vector>

#include "api/subquad.h"

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::vector<at::Tensor> merge_attention(const std::vector<at::Tensor>& parts) {
  const auto merged = subquad::call(
      "merge_attention", {parts[0], parts[1], parts[2], parts[3]});
  return {merged.at(0).toTensor(), merged.at(1).toTensor()};
}

std::vector<at::Tensor> reference(const std::vector<at::Tensor>& parts) {
  const auto lse = at::logaddexp(parts[1], parts[3]);
  return {
      (parts[1] - lse).exp().unsqueeze(-1) * parts[0] +
          (parts[3] - lse).exp().unsqueeze(-1) * parts[2],
      lse};
}

std::vector<at::Tensor> random_parts() {
  at::manual_seed(0);
  const auto leaf = [](at::IntArrayRef sizes) {
    return at::randn(sizes, at::kDouble).set_requires_grad(true);
  };
  return {
      leaf({2, 3, 7, 5}), leaf({2, 3, 7}), leaf({2, 3, 7, 5}), leaf({2, 3, 7})};
}

TEST(MergeAttention, EqualsItsDefinitionForwardAndBackward) {
  const auto parts = random_parts();
  const auto merged = merge_attention(parts);
  const auto expected = reference(parts);
  const std::vector<at::Tensor> weights{
      at::randn({2, 3, 7, 5}, at::kDouble), at::randn({2, 3, 7}, at::kDouble)};
  const auto grads = torch::autograd::grad(merged, parts, weights);
  const auto expected_grads = torch::autograd::grad(expected, parts, weights);
  for (size_t i = 0; i < merged.size(); ++i) {
    EXPECT_TRUE(at::allclose(merged[i], expected[i], 1e-12, 1e-12));
  }
  for (size_t i = 0; i < grads.size(); ++i) {
    EXPECT_TRUE(at::allclose(grads[i], expected_grads[i], 1e-12, 1e-12));
  }
}

TEST(MergeAttention, ASideWithoutKeysIsNotRead) {
  auto parts = random_parts();
  parts[2] = at::full_like(parts[2], kInfinity).set_requires_grad(true);
  parts[3] = at::full_like(parts[3], -kInfinity).set_requires_grad(true);
  const auto merged = merge_attention(parts);
  EXPECT_TRUE(at::equal(merged[0], parts[0]));
  EXPECT_TRUE(at::equal(merged[1], parts[1]));
  const auto grads = torch::autograd::grad({merged[0].sum()}, parts);
  EXPECT_TRUE(at::equal(grads[0], at::ones_like(parts[0])));
  EXPECT_TRUE(at::equal(grads[1], at::zeros_like(parts[1])));
  EXPECT_TRUE(at::equal(grads[2], at::zeros_like(parts[2])));
  EXPECT_TRUE(at::equal(grads[3], at::zeros_like(parts[3])));
}

TEST(MergeAttention, NothingOnBothSidesStaysNothing) {
  auto parts = random_parts();
  for (const size_t i : {1, 3}) {
    parts[i] = at::full_like(parts[i], -kInfinity).set_requires_grad(true);
  }
  const auto merged = merge_attention(parts);
  EXPECT_TRUE(at::equal(merged[0], at::zeros_like(merged[0])));
  EXPECT_TRUE(at::equal(merged[1], at::full_like(merged[1], -kInfinity)));
  for (const auto& grad : torch::autograd::grad({merged[0].sum()}, parts)) {
    EXPECT_TRUE(at::equal(grad, at::zeros_like(grad)));
  }
}

} // namespace
