#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>
#include <string>
#include <unordered_map>
#include <vector>

#include "api/subquad.h"

namespace {

using Options = std::unordered_map<std::string, c10::IValue>;

at::Tensor leaf(at::IntArrayRef sizes) {
  return (at::rand(sizes, at::kDouble) + 0.1).set_requires_grad(true);
}

// Output, state_kv and state_k.
std::vector<at::Tensor> linear_attention(
    const std::vector<at::Tensor>& tensors,
    const Options& options) {
  const auto results = subquad::call(
      "linear_attention_with_state",
      {tensors[0], tensors[1], tensors[2]},
      options);
  return {
      results.at(0).toTensor(),
      results.at(1).toTensor(),
      results.at(2).toTensor()};
}

TEST(LinearAttention, EqualsItsDefinitionForwardAndBackward) {
  at::manual_seed(0);
  // Two query heads for each of keys, several segments.
  const std::vector<at::Tensor> leaves{
      leaf({2, 4, 700, 5}), leaf({2, 2, 700, 5}), leaf({2, 2, 700, 3})};
  const auto key = leaves[1].repeat_interleave(2, 1);
  const auto value = leaves[2].repeat_interleave(2, 1);
  for (const bool causal : {false, true}) {
    const auto found = linear_attention(leaves, {{"causal", causal}});
    auto pairs = leaves[0].matmul(key.transpose(2, 3));
    pairs = causal ? pairs.tril() : pairs;
    const std::vector<at::Tensor> expected{
        pairs.matmul(value) / pairs.sum(3, true),
        leaves[1].transpose(2, 3).matmul(leaves[2]),
        leaves[1].sum(2)};
    std::vector<at::Tensor> weights;
    for (const auto& result : expected) {
      weights.push_back(at::randn_like(result));
    }
    const auto grads = torch::autograd::grad(found, leaves, weights);
    const auto expected_grads =
        torch::autograd::grad(expected, leaves, weights);
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_TRUE(at::allclose(found[i], expected[i], 1e-11, 1e-11));
      EXPECT_TRUE(at::allclose(grads[i], expected_grads[i], 1e-11, 1e-11));
    }
  }
}

TEST(LinearAttention, StepsContinueAPrefix) {
  at::manual_seed(0);
  const std::vector<at::Tensor> tensors{
      at::rand({1, 2, 40, 8}),
      at::rand({1, 2, 40, 8}),
      at::rand({1, 2, 40, 4})};
  const auto whole = linear_attention(tensors, {{"causal", true}})[0];
  Options options{{"causal", true}};
  int64_t begin = 0;
  for (const int64_t end : {35, 36, 37, 40}) {
    std::vector<at::Tensor> part;
    for (const auto& tensor : tensors) {
      part.push_back(tensor.slice(2, begin, end));
    }
    const auto found = linear_attention(part, options);
    EXPECT_TRUE(at::allclose(found[0], whole.slice(2, begin, end), 1e-5, 1e-6));
    options["state_kv"] = found[1];
    options["state_k"] = found[2];
    begin = end;
  }
}

TEST(LinearAttention, TheFutureIsNotRead) {
  at::manual_seed(0);
  std::vector<at::Tensor> tensors{
      at::rand({1, 2, 70, 8}),
      at::rand({1, 2, 70, 8}),
      at::rand({1, 2, 70, 4})};
  const auto expected = linear_attention(tensors, {{"causal", true}})[0];
  for (auto& tensor : tensors) {
    tensor.slice(2, 41).fill_(std::numeric_limits<float>::quiet_NaN());
  }
  const auto found = linear_attention(tensors, {{"causal", true}})[0];
  EXPECT_TRUE(at::equal(found.slice(2, 0, 41), expected.slice(2, 0, 41)));
}

} // namespace
