#include "ops/linear_attention/arguments.h"

#include "ops/layout.h"
#include "ops/optional.h"

namespace subquad {

void make_tables_dense(
    LinearAttentionInputs& inputs,
    LinearAttentionOptions& options) {
  for (OptionalTensor* table :
       {&inputs.key_log_scale,
        &inputs.state_kv,
        &inputs.state_k,
        &inputs.state_log_scale,
        &options.query_weight,
        &options.key_weight,
        &options.query_spans,
        &options.key_spans,
        &options.query_order,
        &options.key_order}) {
    *table = dense(*table);
  }
}

LinearAttentionParams make_params(
    const LinearAttentionInputs& inputs,
    const LinearAttentionOptions& options) {
  LinearAttentionParams params{};
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
  params.causal = options.causal;
  params.blindspot = options.blindspot.guard_int(__FILE__, __LINE__);
  params.normalize = options.normalize;
  params.floor = options.floor;
  params.scale = options.scale;
  const int64_t copies =
      options.query_weight.has_value() ? options.query_weight->size(2) : 1;
  const auto rule = [&](const char* argument, const std::string& name) {
    return FeatureRule{
        parse_feature_map(argument, name),
        options.feature_degree,
        options.feature_offset,
        copies};
  };
  params.query_rule = rule("query_map", options.query_map);
  params.key_rule = rule("key_map", options.key_map);
  params.features =
      copies *
      mapped_features(
          params.query_rule.map, params.head_dim, options.feature_degree);
  params.query_spans = indices_or_null(options.query_spans);
  params.key_spans = indices_or_null(options.key_spans);
  params.query_order = indices_or_null(options.query_order);
  params.key_order = indices_or_null(options.key_order);
  params.query = inputs.query.const_data_ptr();
  params.query_stride = strides_of(inputs.query);
  params.key = inputs.key.const_data_ptr();
  params.key_stride = strides_of(inputs.key);
  params.value = inputs.value.const_data_ptr();
  params.value_stride = strides_of(inputs.value);
  const auto batch_stride = [](const OptionalTensor& table) {
    return table.has_value() && table->size(0) > 1 ? table->stride(0) : 0;
  };
  params.query_weight = data_or_null(options.query_weight);
  params.query_weight_stride = batch_stride(options.query_weight);
  params.key_weight = data_or_null(options.key_weight);
  params.key_weight_stride = batch_stride(options.key_weight);
  params.key_log_scale = data_or_null(inputs.key_log_scale);
  params.state_kv = data_or_null(inputs.state_kv);
  params.state_k = data_or_null(inputs.state_k);
  params.state_log_scale = data_or_null(inputs.state_log_scale);
  return params;
}

void set_outputs(
    LinearAttentionParams& params,
    const LinearAttentionOutputs& outputs) {
  const auto& [output, denominator, state_kv, state_k, state_log_scale] =
      outputs;
  const auto pointer = [](const at::Tensor& tensor) {
    return const_cast<void*>(tensor.const_data_ptr());
  };
  params.output = pointer(output);
  params.output_stride = strides_of(output);
  params.denominator = pointer(denominator);
  params.new_state_kv = pointer(state_kv);
  params.new_state_k = pointer(state_k);
  // Not by key_log_scale, which is null without tokens.
  params.new_state_log_scale =
      state_log_scale.dim() == 2 ? pointer(state_log_scale) : nullptr;
}

LinearAttentionSaved dense_saved(const LinearAttentionSaved& saved) {
  LinearAttentionSaved result = saved;
  if (result.grad_output.has_value()) {
    result.grad_output = dense_last_axis(*result.grad_output);
  }
  result.grad_state_kv = dense(saved.grad_state_kv);
  result.grad_state_k = dense(saved.grad_state_k);
  result.grad_state_log_scale = dense(saved.grad_state_log_scale);
  const auto& [output, denominator, state_kv, state_k, state_log_scale] =
      saved.outputs;
  result.outputs = {
      output,
      denominator.contiguous(),
      state_kv.contiguous(),
      state_k.contiguous(),
      state_log_scale.contiguous()};
  return result;
}

LinearAttentionGradients make_gradients(
    const LinearAttentionSaved& saved,
    const LinearAttentionGradientTensors& results,
    std::array<bool, 7> output_mask) {
  const auto& [query, key, value, key_log_scale, kv, k, log_scale] = results;
  const auto pointer = [&](size_t index, const at::Tensor& tensor) -> void* {
    return output_mask[index] ? tensor.mutable_data_ptr() : nullptr;
  };
  const auto strides = [&](size_t index, const at::Tensor& tensor) {
    return output_mask[index] ? strides_of(tensor) : Strides{};
  };
  LinearAttentionGradients gradients{};
  gradients.grad_output = data_or_null(saved.grad_output);
  if (saved.grad_output.has_value()) {
    gradients.grad_output_stride = strides_of(*saved.grad_output);
  }
  gradients.grad_new_state_kv = data_or_null(saved.grad_state_kv);
  gradients.grad_new_state_k = data_or_null(saved.grad_state_k);
  gradients.grad_new_state_log_scale = data_or_null(saved.grad_state_log_scale);
  gradients.grad_query = pointer(0, query);
  gradients.grad_query_stride = strides(0, query);
  gradients.grad_key = pointer(1, key);
  gradients.grad_key_stride = strides(1, key);
  gradients.grad_value = pointer(2, value);
  gradients.grad_value_stride = strides(2, value);
  gradients.grad_key_log_scale = pointer(3, key_log_scale);
  gradients.grad_state_kv = pointer(4, kv);
  gradients.grad_state_k = pointer(5, k);
  gradients.grad_state_log_scale = pointer(6, log_scale);
  return gradients;
}

} // namespace subquad
