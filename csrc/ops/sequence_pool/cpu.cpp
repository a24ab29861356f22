#include <torch/library.h>

#include "ops/rows.h"
#include "ops/sequence_pool/arguments.h"
#include "ops/sequence_pool/cpu_kernel.h"

namespace at::native {

DEFINE_DISPATCH(subquad_sequence_pool_forward_stub);
DEFINE_DISPATCH(subquad_sequence_pool_backward_stub);

} // namespace at::native

namespace subquad {

namespace {

// The rows as spans, gathered where they are none.
Rows place_rows(SequencePoolInputs& inputs, SequencePoolOptions& options) {
  const Rows rows(
      "sequence_pool",
      "valid",
      options.spans,
      options.order,
      inputs.logits.size(2));
  inputs.logits = rows.gather(inputs.logits);
  inputs.value = rows.gather(inputs.value);
  options.spans = rows.spans();
  options.order.reset();
  return rows;
}

SequencePoolOutputs forward_cpu(
    SequencePoolInputs inputs,
    SequencePoolOptions options) {
  check_sequence_pool(inputs, options);
  const SequencePoolOutputs result =
      empty_sequence_pool_outputs(inputs, options);
  const auto& [output, lse] = result;
  place_rows(inputs, options);
  if (lse.numel() > 0) {
    at::native::subquad_sequence_pool_forward_stub(
        at::kCPU,
        make_params(inputs, options, output, lse),
        inputs.logits.scalar_type());
  }
  return result;
}

SequencePoolGradientTensors backward_cpu(
    SequencePoolSaved saved,
    SequencePoolInputs inputs,
    SequencePoolOptions options,
    std::array<bool, 2> output_mask) {
  const SequencePoolGradientTensors result =
      empty_sequence_pool_gradients(inputs, output_mask);
  // Without heads no value is read, and its gradient is zero.
  if (inputs.logits.numel() == 0) {
    std::apply(
        [](const auto&... gradient) { (gradient.zero_(), ...); }, result);
    return result;
  }
  const auto& [grad_logits, grad_value] = result;
  const Rows rows = place_rows(inputs, options);
  make_results_dense(saved);
  const at::Tensor row_grad_logits =
      output_mask[0] ? rows.workspace(grad_logits) : grad_logits;
  const at::Tensor row_grad_value =
      output_mask[1] ? rows.workspace(grad_value) : grad_value;
  // Tokens outside every row's span keep these.
  if (options.spans.has_value() && !rows.scattered()) {
    row_grad_logits.zero_();
    row_grad_value.zero_();
  }
  at::native::subquad_sequence_pool_backward_stub(
      at::kCPU,
      make_params(inputs, options, saved.output, saved.lse),
      make_gradients(saved, {row_grad_logits, row_grad_value}, output_mask),
      inputs.logits.scalar_type());
  if (output_mask[0]) {
    rows.scatter(row_grad_logits, grad_logits);
  }
  if (output_mask[1]) {
    rows.scatter(row_grad_value, grad_value);
  }
  return result;
}

TORCH_LIBRARY_IMPL(subquad, CPU, m) {
  m.impl("_sequence_pool_forward", SequencePoolForward<&forward_cpu>::call);
  m.impl("_sequence_pool_backward", SequencePoolBackward<&backward_cpu>::call);
}

} // namespace

} // namespace subquad
