#include "ops/window_attention/cpu_arguments.h"

namespace subquad {

namespace {

constexpr const char* kOp = "window_attention";

// Positions of queries outside the rows may be anything.
void check_positions(const WindowAttentionParams& params) {
  if (params.query_position == nullptr) {
    return;
  }
  for (int64_t row = 0; row < params.rows; ++row) {
    const Span span = row_span(params.query_spans, row, params.query_length);
    const int64_t* positions = params.query_position +
        (params.packed ? 0 : row) * params.query_position_stride + span.start;
    for (int64_t i = 0; i < span.length; ++i) {
      TORCH_CHECK_VALUE(
          positions[i] >= -kMostTokens && positions[i] <= kMostTokens,
          kOp,
          ": query_position must lie in [",
          -kMostTokens,
          ", ",
          kMostTokens,
          "], got ",
          positions[i],
          " in row ",
          row);
    }
  }
}

} // namespace

DenseArguments::DenseArguments(
    const WindowAttentionInputs& given,
    const WindowAttentionOptions& given_options)
    : inputs(given),
      options(given_options),
      queries(
          kOp,
          "query",
          options.query_spans,
          options.query_order,
          inputs.query.size(2)),
      keys(
          kOp,
          "key",
          options.key_spans,
          options.key_order,
          inputs.key.size(2)) {
  inputs.query = queries.gather(inputs.query);
  inputs.key = keys.gather(inputs.key);
  inputs.value = keys.gather(inputs.value);
  inputs.key_bias = keys.gather(inputs.key_bias);
  if (queries.scattered() && options.query_position.has_value()) {
    options.query_position = queries.gather(options.query_position->expand(
        {inputs.query.size(0), inputs.query.size(2)}));
  }
  options.query_spans = queries.spans();
  options.key_spans = keys.spans();
  options.query_order.reset();
  options.key_order.reset();
  make_tables_dense(inputs, options);
}

WindowAttentionParams make_params(const DenseArguments& arguments) {
  const WindowAttentionParams params =
      make_params(arguments.inputs, arguments.options);
  check_positions(params);
  return params;
}

} // namespace subquad
