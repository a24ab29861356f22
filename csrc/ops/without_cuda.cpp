#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <string>

// In a build without CUDA kernels: what CUDA tensors are told.
namespace subquad {

namespace {

void refuse(
    const c10::OperatorHandle& op,
    c10::DispatchKeySet /* keys */,
    torch::jit::Stack* /* stack */) {
  // "subquad::_window_attention_forward" -> "window_attention"
  std::string name = op.schema().name().substr(std::string("subquad::").size());
  name.erase(0, name.find_first_not_of('_'));
  for (const char* half : {"_forward", "_backward"}) {
    if (name.ends_with(half)) {
      name.erase(name.size() - std::string(half).size());
    }
  }
  TORCH_CHECK_NOT_IMPLEMENTED(
      false,
      name,
      ": this build has no CUDA kernels (" SUBQUAD_CUDA_REASON
      "); build subquad with -DSUBQUAD_CUDA=on, nvcc and a CUDA build of "
      "torch, or move the tensors to the CPU");
}

// The projection is left to PyTorch's own kernels.
TORCH_LIBRARY_IMPL(subquad, CUDA, m) {
  for (const char* name :
       {"_linear_attention_forward",
        "_linear_attention_backward",
        "mask_to_spans",
        "_merge_attention_forward",
        "_merge_attention_backward",
        "_random_features_forward",
        "_random_features_backward",
        "_sequence_pool_forward",
        "_sequence_pool_backward",
        "_window_attention_forward",
        "_window_attention_backward",
        "_window_attention_weights_forward",
        "_window_attention_weights_backward"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse>());
  }
}

} // namespace

} // namespace subquad
