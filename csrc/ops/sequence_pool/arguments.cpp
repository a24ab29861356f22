#include "ops/sequence_pool/arguments.h"

#include "ops/layout.h"

namespace subquad {

SequencePoolParams make_params(
    const SequencePoolInputs& inputs,
    const SequencePoolOptions& options,
    const at::Tensor& output,
    const at::Tensor& lse) {
  SequencePoolParams params{};
  params.batch = inputs.logits.size(0);
  params.packed = options.packed;
  params.rows = options.packed ? options.spans->size(0) : inputs.logits.size(0);
  params.heads = inputs.logits.size(1);
  params.value_heads = inputs.value.size(1);
  params.length = inputs.logits.size(2);
  params.slots = inputs.logits.size(3);
  params.value_dim = inputs.value.size(3);
  params.spans = indices_or_null(options.spans);
  params.order = indices_or_null(options.order);
  params.logits = inputs.logits.const_data_ptr();
  params.logits_stride = strides_of(inputs.logits);
  params.value = inputs.value.const_data_ptr();
  params.value_stride = strides_of(inputs.value);
  params.output = output.mutable_data_ptr();
  params.lse = lse.mutable_data_ptr();
  return params;
}

void make_results_dense(SequencePoolSaved& saved) {
  saved.output = saved.output.contiguous();
  saved.lse = saved.lse.contiguous();
  saved.grad_output = dense(saved.grad_output);
  saved.grad_lse = dense(saved.grad_lse);
}

SequencePoolGradients make_gradients(
    const SequencePoolSaved& saved,
    const SequencePoolGradientTensors& result,
    std::array<bool, 2> output_mask) {
  const auto& [grad_logits, grad_value] = result;
  SequencePoolGradients gradients{};
  gradients.grad_output = data_or_null(saved.grad_output);
  gradients.grad_lse = data_or_null(saved.grad_lse);
  if (output_mask[0]) {
    gradients.grad_logits = grad_logits.mutable_data_ptr();
    gradients.grad_logits_stride = strides_of(grad_logits);
  }
  if (output_mask[1]) {
    gradients.grad_value = grad_value.mutable_data_ptr();
    gradients.grad_value_stride = strides_of(grad_value);
  }
  return gradients;
}

} // namespace subquad
