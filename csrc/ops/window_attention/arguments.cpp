#include "ops/window_attention/arguments.h"

#include "ops/layout.h"

namespace subquad {

namespace {

int64_t head_stride(const OptionalTensor& table) {
  return table.has_value() && table->size(0) > 1 ? table->stride(0) : 0;
}

} // namespace

void make_tables_dense(
    WindowAttentionInputs& inputs,
    WindowAttentionOptions& options) {
  for (OptionalTensor* table :
       {&inputs.bias,
        &inputs.key_bias,
        &inputs.relative_key,
        &inputs.summary_relative_key,
        &options.query_position,
        &options.query_spans,
        &options.key_spans,
        &options.query_order,
        &options.key_order,
        &options.summary_lengths,
        &options.dropout_state}) {
    *table = dense(*table);
  }
}

WindowAttentionParams make_params(
    const WindowAttentionInputs& inputs,
    const WindowAttentionOptions& options) {
  const auto integer = [](const c10::SymInt& value) {
    return value.guard_int(__FILE__, __LINE__);
  };
  WindowAttentionParams params{};
  params.batch = inputs.query.size(0);
  params.packed = options.packed;
  params.rows =
      options.packed ? options.key_spans->size(0) : inputs.query.size(0);
  params.heads = inputs.query.size(1);
  params.key_heads = inputs.key.size(1);
  params.query_length = inputs.query.size(2);
  params.key_length = inputs.key.size(2);
  params.head_dim = inputs.query.size(3);
  params.value_dim = inputs.value.size(3);
  params.window = {
      integer(options.block),
      integer(options.left),
      integer(options.right),
      options.causal};
  params.summary = {
      integer(options.summary_offset),
      integer(options.summary_block),
      integer(options.summaries_per_block)};
  params.scale = options.scale;
  params.query_offset = integer(options.query_offset);
  params.query_position = indices_or_null(options.query_position);
  if (options.query_position.has_value() &&
      options.query_position->dim() == 2) {
    params.query_position_stride = options.query_position->stride(0);
  }
  params.query_spans = indices_or_null(options.query_spans);
  params.key_spans = indices_or_null(options.key_spans);
  params.summary_lengths = indices_or_null(options.summary_lengths);
  params.query_order = indices_or_null(options.query_order);
  params.query_order_stride = params.query_length;
  params.key_order = indices_or_null(options.key_order);
  params.key_order_stride = params.key_length;
  params.dropout = options.dropout;
  params.dropout_state =
      options.dropout > 0.0 ? indices_or_null(options.dropout_state) : nullptr;
  params.query = inputs.query.const_data_ptr();
  params.query_stride = strides_of(inputs.query);
  params.key = inputs.key.const_data_ptr();
  params.key_stride = strides_of(inputs.key);
  params.value = inputs.value.const_data_ptr();
  params.value_stride = strides_of(inputs.value);
  if (inputs.summary_key.has_value()) {
    params.summaries = inputs.summary_key->size(2);
    params.summary_key = inputs.summary_key->const_data_ptr();
    params.summary_key_stride = strides_of(*inputs.summary_key);
    params.summary_value = inputs.summary_value->const_data_ptr();
    params.summary_value_stride = strides_of(*inputs.summary_value);
  }
  params.bias = data_or_null(inputs.bias);
  params.bias_head_stride = head_stride(inputs.bias);
  params.key_bias = data_or_null(inputs.key_bias);
  params.relative_key = data_or_null(inputs.relative_key);
  params.relative_key_head_stride = head_stride(inputs.relative_key);
  if (inputs.summary_relative_key.has_value()) {
    params.summary_relative_keys = inputs.summary_relative_key->size(1);
  }
  params.summary_relative_key = data_or_null(inputs.summary_relative_key);
  params.summary_relative_key_head_stride =
      head_stride(inputs.summary_relative_key);
  return params;
}

} // namespace subquad
