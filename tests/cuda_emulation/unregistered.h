#pragma once

// Comes before every unit of the emulated operators, precompiled. They share
// their checks and allocations with the library, which has registered the rest
// of those units already.

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

// A template that nobody calls: no boxed kernels are made.
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(library, key, m) \
  template <class Library>                  \
  static void C10_CONCATENATE(              \
      unregistered_##library##_##key##_, __LINE__)(Library & m)
