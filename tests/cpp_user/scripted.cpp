#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include "numbers.h"

// scripted MODEL.pt NUMBERS.pt: runs a module that torch.jit.save wrote.
int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: scripted MODEL.pt NUMBERS.pt" << std::endl;
    return 2;
  }
  const c10::InferenceMode guard;
  torch::jit::Module model = torch::jit::load(argv[1]);
  const Numbers numbers(argv[2]);
  return numbers.compare(model.forward({numbers.input}).toTensor());
}
