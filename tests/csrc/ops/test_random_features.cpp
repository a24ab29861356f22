#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>
#include <string>
#include <unordered_map>
#include <vector>

#include "api/subquad.h"

namespace {

using Options = std::unordered_map<std::string, c10::IValue>;

at::Tensor leaf(at::IntArrayRef sizes) {
  return at::randn(sizes, at::kDouble).set_requires_grad(true);
}

std::vector<at::Tensor> random_features(
    const std::vector<at::Tensor>& inputs,
    const Options& options) {
  const auto made =
      subquad::call("random_features", {inputs[0], inputs[1]}, options);
  return {made.at(0).toTensor(), made.at(1).toTensor()};
}

// With every head's own projection, and the whole axis one row.
std::vector<at::Tensor> reference(
    const std::vector<at::Tensor>& inputs,
    const std::string& stabilizer) {
  const double scale = std::pow(inputs[0].size(3), -0.25);
  const auto x = scale * inputs[0];
  const auto p = x.matmul(inputs[1].transpose(1, 2));
  const auto n = x.square().sum(-1, /*keepdim=*/true) / 2;
  auto m = p.amax(-1, /*keepdim=*/true);
  if (stabilizer == "row") {
    m = p.amax({-1, -2}, /*keepdim=*/true).expand_as(n);
  } else if (stabilizer == "prefix") {
    m = std::get<0>(m.cummax(2));
  }
  const double root = 1.0 / std::sqrt(static_cast<double>(p.size(3)));
  return {root * (p - n - m).exp(), m.squeeze(-1)};
}

TEST(RandomFeatures, EqualTheirDefinitionForwardAndBackward) {
  for (const std::string stabilizer : {"token", "row", "prefix"}) {
    at::manual_seed(0);
    const std::vector<at::Tensor> leaves{leaf({2, 3, 111, 6}), leaf({3, 9, 6})};
    const auto made = random_features(leaves, {{"stabilizer", stabilizer}});
    const auto expected = reference(leaves, stabilizer);
    const std::vector<at::Tensor> weights{
        at::randn_like(made[0]), at::randn_like(made[1])};
    const auto grads = torch::autograd::grad(made, leaves, weights);
    const auto expected_grads =
        torch::autograd::grad(expected, leaves, weights);
    for (size_t i = 0; i < made.size(); ++i) {
      EXPECT_TRUE(at::allclose(made[i], expected[i], 1e-12, 1e-12))
          << stabilizer;
      EXPECT_TRUE(at::allclose(grads[i], expected_grads[i], 1e-11, 1e-11))
          << stabilizer;
    }
  }
}

TEST(RandomFeatures, NothingComesFromTheFuture) {
  at::manual_seed(0);
  const std::vector<at::Tensor> inputs{
      at::randn({1, 2, 150, 8}), at::randn({2, 16, 8})};
  const auto made = random_features(inputs, {{"stabilizer", "prefix"}});
  auto spoiled = inputs;
  spoiled[0] = inputs[0].clone();
  spoiled[0].slice(2, 64).fill_(std::numeric_limits<double>::quiet_NaN());
  const auto found = random_features(spoiled, {{"stabilizer", "prefix"}});
  for (size_t i = 0; i < made.size(); ++i) {
    EXPECT_TRUE(at::equal(found[i].slice(2, 0, 64), made[i].slice(2, 0, 64)));
  }
}

TEST(RandomFeatures, TokensOutsideTheRowAreZero) {
  const std::vector<at::Tensor> leaves{leaf({2, 2, 9, 4}), leaf({2, 5, 4})};
  const auto made = random_features(
      leaves,
      {{"stabilizer", "row"}, {"lengths", at::full({2}, 4, at::kLong)}});
  EXPECT_FALSE(made[0].slice(2, 4).any().item<bool>());
  EXPECT_FALSE(made[1].slice(2, 4).any().item<bool>());
  const auto grads = torch::autograd::grad({made[0].sum()}, leaves);
  EXPECT_FALSE(grads[0].slice(2, 4).any().item<bool>());
  EXPECT_TRUE(grads[1].isfinite().all().item<bool>());
}

} // namespace
