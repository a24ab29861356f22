#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>

#include "api/subquad.h"

namespace {

at::Tensor window_attention(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value,
    std::unordered_map<std::string, c10::IValue> named) {
  return subquad::call("window_attention", {query, key, value}, named)
      .at(0)
      .toTensor();
}

// Full causal attention: the window reaches back to the first key.
at::Tensor dense_causal(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value) {
  const int64_t length = query.size(2);
  const at::Tensor logits =
      at::matmul(query, key.transpose(-2, -1)) / std::sqrt(query.size(3));
  const at::Tensor mask =
      at::ones({length, length}, at::kBool).triu(/*diagonal=*/1);
  const double infinity = std::numeric_limits<double>::infinity();
  return at::matmul(logits.masked_fill(mask, -infinity).softmax(-1), value);
}

TEST(WindowAttention, EqualsDenseAttentionWhenTheWindowCoversAll) {
  at::manual_seed(0);
  const auto query = at::randn({2, 3, 17, 8}, at::kDouble);
  const auto key = at::randn({2, 3, 17, 8}, at::kDouble);
  const auto value = at::randn({2, 3, 17, 5}, at::kDouble);
  const auto output = window_attention(
      query,
      key,
      value,
      {{"block", 1}, {"left", 16}, {"right", 0}, {"causal", true}});
  EXPECT_TRUE(
      at::allclose(output, dense_causal(query, key, value), 1e-12, 1e-12));
}

TEST(WindowAttention, AutogradWorksWithoutPython) {
  at::manual_seed(1);
  const auto leaf = [](at::IntArrayRef sizes) {
    return at::randn(sizes, at::kDouble).set_requires_grad(true);
  };
  const auto query = leaf({1, 2, 11, 4});
  const auto key = leaf({1, 2, 11, 4});
  const auto value = leaf({1, 2, 11, 4});
  const auto weight = at::randn({1, 2, 11, 4}, at::kDouble);
  const auto output = window_attention(
      query,
      key,
      value,
      {{"block", 1}, {"left", 10}, {"right", 0}, {"causal", true}});
  const auto grads =
      torch::autograd::grad({(output * weight).sum()}, {query, key, value});
  const auto expected = torch::autograd::grad(
      {(dense_causal(query, key, value) * weight).sum()}, {query, key, value});
  for (size_t i = 0; i < grads.size(); ++i) {
    EXPECT_TRUE(at::allclose(grads[i], expected[i], 1e-10, 1e-12));
  }
}

TEST(WindowAttention, RowsWithoutKeysGiveZeros) {
  const auto query = at::randn({1, 1, 5, 4}).set_requires_grad(true);
  const auto key = at::randn({1, 1, 5, 4}).set_requires_grad(true);
  const auto value = at::randn({1, 1, 5, 4}).set_requires_grad(true);
  const auto output = window_attention(
      query,
      key,
      value,
      {{"block", 1},
       {"left", 1},
       {"right", 1},
       {"lengths", at::zeros({1}, at::kLong)}});
  EXPECT_TRUE(at::equal(output, at::zeros_like(output)));
  const auto grads = torch::autograd::grad({output.sum()}, {query, key, value});
  for (const auto& grad : grads) {
    EXPECT_TRUE(at::equal(grad, at::zeros_like(grad)));
  }
}

TEST(WindowAttention, ErrorsNameTheOperatorTheRuleAndTheValue) {
  const auto x = at::randn({1, 1, 5, 4});
  try {
    window_attention(x, x, x, {{"block", 0}, {"left", 0}, {"right", 0}});
    FAIL() << "block = 0 was accepted";
  } catch (const c10::ValueError& error) {
    EXPECT_STREQ(
        error.what_without_backtrace(),
        "window_attention: block must be positive, got 0");
  }
}

TEST(Call, RefusesAnUnknownArgumentAndAMissingOne) {
  const auto x = at::randn({1, 1, 5, 4});
  EXPECT_THROW(
      window_attention(
          x, x, x, {{"block", 1}, {"left", 0}, {"right", 0}, {"rigth", 0}}),
      c10::ValueError);
  EXPECT_THROW(
      window_attention(x, x, x, {{"block", 1}, {"left", 0}}), c10::ValueError);
  EXPECT_THROW(subquad::call("no_such_operator", {x}), c10::Error);
}

} // namespace
