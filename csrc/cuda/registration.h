#pragma once

#include <torch/library.h>

// The CUDA implementations of an operator's schemas: `m.impl("name",
// &function)` between braces.
#define SUBQUAD_CUDA_IMPL(m) TORCH_LIBRARY_IMPL(subquad, CUDA, m)
