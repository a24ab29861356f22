#include <ATen/ATen.h>
#include <subquad.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iostream>
#include <vector>

// Causal attention over the last three keys, forwards and backwards, against
// the definition: one query at a time, from the keys that it sees.

constexpr int64_t kLeft = 2;

at::Tensor reference(
    const at::Tensor& query, // [L, D]
    const at::Tensor& key,   // [L, D]
    const at::Tensor& value) // [L, D]
{
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < query.size(0); ++i) {
    const at::indexing::Slice seen(std::max<int64_t>(i - kLeft, 0), i + 1);
    const at::Tensor logits =
        at::mv(key.index({seen}), query[i]) / std::sqrt(query.size(1));
    rows.push_back(at::mv(value.index({seen}).t(), logits.softmax(0)));
  }
  return at::stack(rows);
}

int main() {
  at::manual_seed(0);
  const auto leaf = [] {
    return at::randn({1, 1, 13, 8}, at::kDouble).set_requires_grad(true);
  };
  const at::Tensor query = leaf();
  const at::Tensor key = leaf();
  const at::Tensor value = leaf();
  const at::Tensor weight = at::randn({13, 8}, at::kDouble);

  const auto outputs = subquad::call(
      "window_attention",
      {query, key, value},
      {{"block", 1}, {"left", kLeft}, {"right", 0}, {"causal", true}});
  const at::Tensor output = outputs[0].toTensor();
  const at::Tensor expected = reference(query[0][0], key[0][0], value[0][0]);
  double error = (output[0][0] - expected).abs().max().item<double>();

  const auto gradients = torch::autograd::grad(
      {(output[0][0] * weight).sum()}, {query, key, value});
  const auto wanted =
      torch::autograd::grad({(expected * weight).sum()}, {query, key, value});
  for (size_t i = 0; i < gradients.size(); ++i) {
    const at::Tensor difference = gradients[i] - wanted[i];
    error = std::max(error, difference.abs().max().item<double>());
  }
  std::cout << "largest error " << error << std::endl;
  return error < 1e-12 ? 0 : 1;
}
