#pragma once

#include "common/window_attention.h"
#include "ops/rows.h"
#include "ops/window_attention/signatures.h"

// What the CPU operators make of their arguments before a kernel runs.
namespace subquad {

// Small tables and index vectors are made dense, rows that are not spans are
// gathered; query, key, value and the summaries are read through their strides.
struct DenseArguments {
  WindowAttentionInputs inputs;
  WindowAttentionOptions options;
  Rows queries;
  Rows keys;

  DenseArguments(
      const WindowAttentionInputs& given,
      const WindowAttentionOptions& given_options);
};

// Everything but the results' pointers.
WindowAttentionParams make_params(const DenseArguments& arguments);

const void* data_or_null(const OptionalTensor& tensor);
const int64_t* indices_or_null(const OptionalTensor& tensor);
OptionalTensor dense(const OptionalTensor& tensor);

} // namespace subquad
