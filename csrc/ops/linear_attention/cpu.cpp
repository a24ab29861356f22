#include <torch/library.h>

#include <algorithm>

#include "ops/layout.h"
#include "ops/linear_attention/arguments.h"
#include "ops/linear_attention/cpu_kernel.h"
#include "ops/rows.h"

namespace at::native {

DEFINE_DISPATCH(subquad_linear_attention_forward_stub);
DEFINE_DISPATCH(subquad_linear_attention_backward_stub);

} // namespace at::native

namespace subquad {

namespace {

constexpr const char* kOp = "linear_attention";

// [1 or B, N, C]; a table for all rows is repeated where rows are compacted.
OptionalTensor
gather_weights(const Rows& rows, const OptionalTensor& weights, int64_t batch) {
  if (!weights.has_value() || !rows.scattered()) {
    return weights;
  }
  const at::Tensor expanded =
      weights->expand({batch, weights->size(1), weights->size(2)})
          .contiguous()
          .unsqueeze(1);
  return rows.gather(expanded).squeeze(1);
}

// The arguments of a CPU operator: tables are dense, and rows that are not
// spans are gathered, so that no order is left.
struct DenseArguments {
  LinearAttentionInputs inputs;
  LinearAttentionOptions options;
  Rows keys;
  Rows queries;

  DenseArguments(
      const LinearAttentionInputs& given,
      const LinearAttentionOptions& given_options)
      : inputs(given),
        options(given_options),
        keys(
            kOp,
            "key",
            options.key_spans,
            options.key_order,
            inputs.key.size(2)),
        queries(
            options.causal ? keys
                           : Rows(
                                 kOp,
                                 "query",
                                 options.query_spans,
                                 options.query_order,
                                 inputs.query.size(2))) {
    const int64_t batch = inputs.query.size(0);
    inputs.query = queries.gather(inputs.query);
    inputs.key = keys.gather(inputs.key);
    inputs.value = keys.gather(inputs.value);
    inputs.key_log_scale = keys.gather(dense(inputs.key_log_scale));
    options.query_weight = gather_weights(queries, options.query_weight, batch);
    options.key_weight = gather_weights(keys, options.key_weight, batch);
    options.query_spans = queries.spans();
    options.key_spans = keys.spans();
    options.query_order.reset();
    options.key_order.reset();
    make_tables_dense(inputs, options);
  }
};

LinearAttentionOutputs forward_cpu(
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options) {
  check_linear_attention(inputs, options);
  const DenseArguments arguments(inputs, options);
  LinearAttentionOutputs outputs =
      empty_linear_attention_outputs(inputs, options);
  const at::Tensor output = std::get<0>(outputs);
  const at::Tensor denominator = std::get<1>(outputs);
  // Queries outside every row's span keep these values.
  if (options.query_spans.has_value() && !arguments.queries.scattered()) {
    output.zero_();
    denominator.zero_();
  }
  LinearAttentionOutputs row_outputs = outputs;
  std::get<0>(row_outputs) = arguments.queries.workspace(output);
  std::get<1>(row_outputs) = arguments.queries.workspace(denominator);
  LinearAttentionParams params =
      make_params(arguments.inputs, arguments.options);
  set_outputs(params, row_outputs);
  at::native::subquad_linear_attention_forward_stub(
      at::kCPU, params, inputs.query.scalar_type());
  arguments.queries.scatter(std::get<0>(row_outputs), output);
  arguments.queries.scatter(std::get<1>(row_outputs), denominator);
  return outputs;
}

LinearAttentionGradientTensors backward_cpu(
    const LinearAttentionSaved& given_saved,
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options,
    std::array<bool, 7> output_mask) {
  const DenseArguments arguments(inputs, options);
  const LinearAttentionGradientTensors results =
      empty_linear_attention_gradients(inputs, output_mask);
  LinearAttentionSaved saved = dense_saved(given_saved);
  saved.grad_output = arguments.queries.gather(saved.grad_output);
  auto& [output, denominator, state_kv, state_k, state_log_scale] =
      saved.outputs;
  output = arguments.queries.gather(output);
  denominator = arguments.queries.gather(denominator);

  LinearAttentionGradientTensors row_results = results;
  const auto in_rows = [&](auto index, const Rows& rows) {
    if (output_mask[index]) {
      at::Tensor& gradient = std::get<index>(row_results);
      gradient = rows.workspace(gradient);
      // Tokens outside every row's span keep zeros.
      if (rows.spans().has_value()) {
        gradient.zero_();
      }
    }
  };
  const auto from_rows = [&](auto index, const Rows& rows) {
    if (output_mask[index]) {
      rows.scatter(std::get<index>(row_results), std::get<index>(results));
    }
  };
  const auto for_tokens = [&](const auto& visit) {
    visit(std::integral_constant<size_t, 0>(), arguments.queries);
    visit(std::integral_constant<size_t, 1>(), arguments.keys);
    visit(std::integral_constant<size_t, 2>(), arguments.keys);
    visit(std::integral_constant<size_t, 3>(), arguments.keys);
  };
  for_tokens(in_rows);
  LinearAttentionParams params =
      make_params(arguments.inputs, arguments.options);
  set_outputs(params, saved.outputs);
  at::native::subquad_linear_attention_backward_stub(
      at::kCPU,
      params,
      make_gradients(saved, row_results, output_mask),
      inputs.query.scalar_type());
  for_tokens(from_rows);
  return results;
}

TORCH_LIBRARY_IMPL(subquad, CPU, m) {
  m.impl(
      "_linear_attention_forward", LinearAttentionForward<&forward_cpu>::call);
  m.impl(
      "_linear_attention_backward",
      LinearAttentionBackward<&backward_cpu>::call);
}

} // namespace

} // namespace subquad
