#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <vector>

#include "api/subquad.h"

namespace {

constexpr int64_t kFeatures = 8;

std::vector<at::Tensor> random_parts() { // query, key, value, projection
  at::manual_seed(0);
  const auto leaf = [](at::IntArrayRef sizes) {
    return at::randn(sizes, at::kDouble).set_requires_grad(true);
  };
  return {
      leaf({2, 2, 7, 4}),
      leaf({2, 2, 7, 4}),
      leaf({2, 2, 7, 5}),
      leaf({2, kFeatures, 4})};
}

at::Tensor features(
    const at::Tensor& x,
    const at::Tensor& projection,
    at::IntArrayRef axes) {
  const auto p = std::pow(4.0, -0.25) * x.matmul(projection.mT());
  const auto n = x.square().sum(-1, true) * (std::pow(4.0, -0.5) / 2);
  return (at::exp(p - n - p.amax(axes, true)) + 1e-4) / std::sqrt(kFeatures);
}

TEST(PerformerAttention, EqualsItsDefinitionForwardAndBackward) {
  const auto parts = random_parts();
  const auto output =
      subquad::call(
          "performer_attention", {parts[0], parts[1], parts[2], parts[3]})
          .at(0)
          .toTensor();
  const auto scores = features(parts[0], parts[3], {-1})
                          .matmul(features(parts[1], parts[3], {-2, -1}).mT());
  const auto expected =
      scores.matmul(parts[2]) / scores.sum(-1, true).clamp_min(0.1);
  EXPECT_TRUE(at::allclose(output, expected, 1e-10, 1e-10));
  const auto weight = at::randn_like(output);
  const auto grads = torch::autograd::grad({output}, parts, {weight});
  const auto expected_grads =
      torch::autograd::grad({expected}, parts, {weight});
  for (size_t i = 0; i < grads.size(); ++i) {
    EXPECT_TRUE(at::allclose(grads[i], expected_grads[i], 1e-10, 1e-10));
  }
}

TEST(PerformerAttention, StepsEqualTheWhole) {
  const auto parts = random_parts();
  const auto whole = subquad::call(
                         "performer_attention",
                         {parts[0], parts[1], parts[2], parts[3]},
                         {{"causal", true}})
                         .at(0)
                         .toTensor();
  std::unordered_map<std::string, c10::IValue> options{{"causal", true}};
  for (int64_t i = 0; i < 7; ++i) {
    const auto result = subquad::call(
        "performer_attention_with_state",
        {parts[0].slice(2, i, i + 1),
         parts[1].slice(2, i, i + 1),
         parts[2].slice(2, i, i + 1),
         parts[3]},
        options);
    EXPECT_TRUE(at::allclose(
        result.at(0).toTensor(), whole.slice(2, i, i + 1), 1e-10, 1e-10));
    options["state_kv"] = result.at(1);
    options["state_k"] = result.at(2);
    options["state_log_scale"] = result.at(3);
  }
}

} // namespace
