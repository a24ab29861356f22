#pragma once

#include "ops/optional.h"
#include "ops/sequence_pool/sequence_pool.h"

// The dispatcher wants flat argument lists. Each list stands here once; the
// functions behind it take (inputs, options).
namespace subquad {

// _sequence_pool_forward
template <auto function>
struct SequencePoolForward {
  static SequencePoolOutputs call(
      const at::Tensor& logits,
      const at::Tensor& value,
      const OptionalTensor& spans,
      bool packed,
      const OptionalTensor& order) {
    return function(
        SequencePoolInputs{logits, value},
        SequencePoolOptions{spans, packed, order});
  }
};

// What backward gets besides inputs and options.
struct SequencePoolSaved {
  OptionalTensor grad_output;
  OptionalTensor grad_lse;
  at::Tensor output;
  at::Tensor lse;
};

// _sequence_pool_backward
template <auto function>
struct SequencePoolBackward {
  static SequencePoolGradientTensors call(
      const OptionalTensor& grad_output,
      const OptionalTensor& grad_lse,
      const at::Tensor& output,
      const at::Tensor& lse,
      const at::Tensor& logits,
      const at::Tensor& value,
      const OptionalTensor& spans,
      bool packed,
      const OptionalTensor& order,
      std::array<bool, 2> output_mask) {
    return function(
        SequencePoolSaved{grad_output, grad_lse, output, lse},
        SequencePoolInputs{logits, value},
        SequencePoolOptions{spans, packed, order},
        output_mask);
  }
};

// sequence_pool and sequence_pool_with_lse: lengths, starts and cu_seqlens
// become spans.
SequencePoolOptions make_sequence_pool_options(
    const SequencePoolInputs& inputs,
    const OptionalTensor& lengths,
    const OptionalTensor& starts,
    const OptionalTensor& order,
    const OptionalTensor& cu_seqlens);

template <auto function>
struct SequencePoolPublic {
  static auto call(
      const at::Tensor& logits,
      const at::Tensor& value,
      const OptionalTensor& lengths,
      const OptionalTensor& starts,
      const OptionalTensor& order,
      const OptionalTensor& cu_seqlens) {
    const SequencePoolInputs inputs{logits, value};
    return function(
        inputs,
        make_sequence_pool_options(inputs, lengths, starts, order, cu_seqlens));
  }
};

} // namespace subquad
