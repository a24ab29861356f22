#pragma once

#include "ops/rows.h"
#include "ops/window_attention/arguments.h"

namespace subquad {

// The arguments of a CPU operator: tables are dense, and rows that are not
// spans are gathered, so that no order is left.
struct DenseArguments {
  WindowAttentionInputs inputs;
  WindowAttentionOptions options;
  Rows queries;
  Rows keys;

  DenseArguments(
      const WindowAttentionInputs& given,
      const WindowAttentionOptions& given_options);
};

// Everything but the results' pointers. Refuses positions that are too far
// away.
WindowAttentionParams make_params(const DenseArguments& arguments);

} // namespace subquad
