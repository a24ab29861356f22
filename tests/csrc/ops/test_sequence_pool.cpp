#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>
#include <string>
#include <unordered_map>
#include <vector>

#include "api/subquad.h"

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

at::Tensor leaf(at::IntArrayRef sizes) {
  return at::randn(sizes, at::kDouble).set_requires_grad(true);
}

std::vector<at::Tensor> sequence_pool(
    const at::Tensor& logits,
    const at::Tensor& value,
    const std::unordered_map<std::string, c10::IValue>& options = {}) {
  const auto pooled =
      subquad::call("sequence_pool_with_lse", {logits, value}, options);
  return {pooled.at(0).toTensor(), pooled.at(1).toTensor()};
}

TEST(SequencePool, EqualsItsDefinitionForwardAndBackward) {
  at::manual_seed(0);
  // Two heads of logits for each of values, several segments.
  const std::vector<at::Tensor> leaves{
      leaf({2, 4, 1100, 5}), leaf({2, 2, 1100, 7})};
  const auto pooled = sequence_pool(leaves[0], leaves[1]);
  const auto value = leaves[1].repeat_interleave(2, 1);
  const std::vector<at::Tensor> expected{
      leaves[0].softmax(2).transpose(2, 3).matmul(value),
      leaves[0].logsumexp(2)};
  const std::vector<at::Tensor> weights{
      at::randn_like(expected[0]), at::randn_like(expected[1])};
  const auto grads = torch::autograd::grad(pooled, leaves, weights);
  const auto expected_grads = torch::autograd::grad(expected, leaves, weights);
  for (size_t i = 0; i < pooled.size(); ++i) {
    EXPECT_TRUE(at::allclose(pooled[i], expected[i], 1e-12, 1e-12));
    EXPECT_TRUE(at::allclose(grads[i], expected_grads[i], 1e-12, 1e-12));
  }
}

TEST(SequencePool, TokensOutsideTheRowAreNotRead) {
  at::manual_seed(0);
  auto logits = at::randn({2, 2, 9, 3}, at::kDouble);
  auto value = at::randn({2, 2, 9, 4}, at::kDouble);
  const auto expected = sequence_pool(
      logits.slice(2, 2, 7).contiguous(), value.slice(2, 2, 7).contiguous());
  for (const auto& spoiled : {logits, value}) {
    spoiled.slice(2, 0, 2).fill_(kInfinity);
    spoiled.slice(2, 7, 9).fill_(-kInfinity);
  }
  logits.set_requires_grad(true);
  const auto pooled = sequence_pool(
      logits,
      value,
      {{"lengths", at::full({2}, 5, at::kLong)},
       {"starts", at::full({2}, 2, at::kLong)}});
  EXPECT_TRUE(at::equal(pooled[0], expected[0]));
  EXPECT_TRUE(at::equal(pooled[1], expected[1]));
  const auto grads = torch::autograd::grad({pooled[0].sum()}, {logits});
  EXPECT_FALSE(grads[0].slice(2, 0, 2).any().item<bool>());
  EXPECT_FALSE(grads[0].slice(2, 7, 9).any().item<bool>());
  EXPECT_TRUE(grads[0].isfinite().all().item<bool>());
}

TEST(SequencePool, ARowWithoutTokensPoolsToNothing) {
  const std::vector<at::Tensor> leaves{leaf({1, 2, 6, 3}), leaf({1, 2, 6, 4})};
  const auto pooled = sequence_pool(
      leaves[0],
      leaves[1],
      {{"cu_seqlens", at::tensor({0, 2, 2, 6}, at::kLong)}});
  EXPECT_TRUE(at::equal(pooled[0][1], at::zeros_like(pooled[0][1])));
  EXPECT_TRUE(at::equal(pooled[1][1], at::full_like(pooled[1][1], -kInfinity)));
  for (const auto& grad : torch::autograd::grad({pooled[0].sum()}, leaves)) {
    EXPECT_TRUE(grad.isfinite().all().item<bool>());
  }
}

} // namespace
