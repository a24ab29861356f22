#include <ATen/ops/empty.h>

#include "cuda/context.h"
#include "cuda/dtype.h"
#include "cuda/registration.h"
#include "ops/sequence_pool/arguments.h"
#include "ops/sequence_pool/cuda_kernel.h"
#include "ops/sequence_pool/workspace.h"
#include "ops/spans.h"

namespace subquad {

namespace {

void make_dense_and_in_place(SequencePoolOptions& options) {
  options.spans = dense(options.spans);
  options.order = dense(options.order);
  place_ordered_rows(options.spans, options.order);
}

at::Tensor empty_workspace(const at::Tensor& logits, size_t bytes) {
  return at::empty(
      {static_cast<int64_t>(bytes)}, logits.options().dtype(at::kByte));
}

SequencePoolOutputs forward_cuda(
    const SequencePoolInputs& inputs,
    SequencePoolOptions options) {
  const cuda::DeviceGuard guard(inputs.logits);
  check_sequence_pool(inputs, options);
  const SequencePoolOutputs result =
      empty_sequence_pool_outputs(inputs, options);
  const auto& [output, lse] = result;
  if (lse.numel() > 0) {
    make_dense_and_in_place(options);
    const SequencePoolParams params = make_params(inputs, options, output, lse);
    const at::Tensor workspace = empty_workspace(
        inputs.logits,
        sequence_pool::forward_workspace(params, lse.element_size(), nullptr)
            .bytes);
    cuda::check(launch_sequence_pool_forward(
        params,
        workspace.mutable_data_ptr(),
        cuda::scalar_kind(inputs.logits),
        cuda::current_stream()));
  }
  return result;
}

SequencePoolGradientTensors backward_cuda(
    SequencePoolSaved saved,
    const SequencePoolInputs& inputs,
    SequencePoolOptions options,
    std::array<bool, 2> output_mask) {
  // What a tile of values and of gradients has room for.
  constexpr int64_t kMaxValueDim = 256;
  const cuda::DeviceGuard guard(inputs.logits);
  TORCH_CHECK_NOT_IMPLEMENTED(
      inputs.value.size(3) <= kMaxValueDim,
      "sequence_pool: the value dimension M is at most ",
      kMaxValueDim,
      " for gradients on CUDA, got ",
      inputs.value.size(3));
  const SequencePoolGradientTensors result =
      empty_sequence_pool_gradients(inputs, output_mask);
  // Without heads or slots no value is read, and its gradient is zero; tokens
  // outside every row have none either.
  if (inputs.logits.numel() == 0 || options.spans.has_value()) {
    std::apply(
        [](const auto&... gradient) { (gradient.zero_(), ...); }, result);
  }
  if (inputs.logits.numel() == 0) {
    return result;
  }
  make_dense_and_in_place(options);
  make_results_dense(saved);
  const SequencePoolParams params =
      make_params(inputs, options, saved.output, saved.lse);
  const at::Tensor workspace = empty_workspace(
      inputs.logits,
      sequence_pool::backward_workspace_bytes(
          params, saved.lse.element_size()));
  cuda::check(launch_sequence_pool_backward(
      params,
      make_gradients(saved, result, output_mask),
      workspace.mutable_data_ptr(),
      cuda::scalar_kind(inputs.logits),
      cuda::current_stream()));
  return result;
}

SUBQUAD_CUDA_IMPL(m) {
  m.impl("_sequence_pool_forward", SequencePoolForward<&forward_cuda>::call);
  m.impl("_sequence_pool_backward", SequencePoolBackward<&backward_cuda>::call);
}

} // namespace

} // namespace subquad
