#pragma once

#include <torch/library.h>

// Registers what runs on CUDA tensors for CPU tensors, beside the operators.
#define SUBQUAD_CUDA_IMPL(m) TORCH_LIBRARY_FRAGMENT(subquad_emulated, m)
