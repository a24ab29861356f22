#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

// What torch.save({"input": ..., "output": ...}, path) wrote.
struct Numbers {
  at::Tensor input;
  at::Tensor output;

  explicit Numbers(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    const auto entries = torch::jit::pickle_load(bytes).toGenericDict();
    input = entries.at("input").toTensor();
    output = entries.at("output").toTensor();
  }

  // Says how far the result is from the saved one; returns an exit code.
  int compare(const at::Tensor& result) const {
    const double error = (result - output).abs().max().item<double>();
    std::cout << "largest error " << error << std::endl;
    return error < 1e-5 ? 0 : 1;
  }
};
