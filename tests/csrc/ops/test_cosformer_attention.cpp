#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#include "api/subquad.h"

namespace {

std::vector<at::Tensor> random_parts() { // query, key, value
  at::manual_seed(0);
  const auto leaf = [](at::IntArrayRef sizes) {
    return at::randn(sizes, at::kDouble).set_requires_grad(true);
  };
  return {leaf({2, 4, 7, 3}), leaf({2, 2, 7, 3}), leaf({2, 2, 7, 5})};
}

at::Tensor reference(const std::vector<at::Tensor>& parts) {
  const auto key = parts[1].repeat_interleave(2, 1);
  const auto value = parts[2].repeat_interleave(2, 1);
  const auto position = at::arange(7, at::kDouble);
  const auto distance = position.unsqueeze(1) - position;
  const auto scores = (parts[0].relu().matmul(key.relu().mT()) *
                       (distance * (M_PI / 2 / 20)).cos())
                          .tril();
  return scores.matmul(value) / scores.sum(-1, true).clamp_min(1e-6);
}

TEST(CosformerAttention, EqualsItsDefinitionForwardAndBackward) {
  const auto parts = random_parts();
  const auto output = subquad::call(
                          "cosformer_attention",
                          {parts[0], parts[1], parts[2]},
                          {{"causal", true}, {"max_length", 20}})
                          .at(0)
                          .toTensor();
  const auto expected = reference(parts);
  EXPECT_TRUE(at::allclose(output, expected, 1e-10, 1e-10));
  const auto weight = at::randn_like(output);
  const auto grads = torch::autograd::grad({output}, parts, {weight});
  const auto expected_grads =
      torch::autograd::grad({expected}, parts, {weight});
  for (size_t i = 0; i < grads.size(); ++i) {
    EXPECT_TRUE(at::allclose(grads[i], expected_grads[i], 1e-10, 1e-10));
  }
}

TEST(CosformerAttention, RefusesAPositionBeyondTheLongestSequence) {
  const auto parts = random_parts();
  EXPECT_THROW(
      subquad::call(
          "cosformer_attention",
          {parts[0], parts[1], parts[2]},
          {{"max_length", 6}}),
      c10::ValueError);
}

} // namespace
