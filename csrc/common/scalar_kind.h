#pragma once

namespace subquad {

// The element types of the operators, for kernels that see no torch header.
enum class ScalarKind { kDouble, kFloat, kBFloat16, kHalf };

} // namespace subquad
