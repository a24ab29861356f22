#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include "numbers.h"

// compiled MODEL.pt2 NUMBERS.pt: runs a package that
// torch._inductor.aoti_compile_and_package wrote.
int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: compiled MODEL.pt2 NUMBERS.pt" << std::endl;
    return 2;
  }
  const c10::InferenceMode guard;
  torch::inductor::AOTIModelPackageLoader model(argv[1]);
  const Numbers numbers(argv[2]);
  return numbers.compare(model.run({numbers.input}).at(0));
}
