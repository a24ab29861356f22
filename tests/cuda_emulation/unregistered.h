#pragma once

// Comes before every unit of the emulated operators, precompiled. They share
// their checks and allocations with the library, which has registered the rest
// of those units already.

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(library, key, m)     \
  [[maybe_unused]] static void C10_CONCATENATE( \
      unregistered_##library##_##key##_,        \
      __LINE__)([[maybe_unused]] torch::Library & m)
