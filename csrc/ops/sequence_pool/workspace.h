#pragma once

#include <cstddef>
#include <cstdint>

#include "common/sequence_pool.h"

// The memory between the kernels of sequence pooling, in the accumulation type.
namespace subquad::sequence_pool {

// Segments of a row's tokens, each with its own softmax until they are merged.
// The tokens of a segment are enough that all parts together take no more
// memory than logits and values.
inline int64_t segments_of(const SequencePoolParams& params) {
  constexpr int64_t kSegment = 512;
  constexpr int64_t kMaxSegments = 64;
  const int64_t length = params.packed
      ? ceil_divide(params.length, max_index(params.rows, 1))
      : params.length;
  return max_index(min_index(length / kSegment, kMaxSegments), 1);
}

struct ForwardWorkspace {
  void* top;   // [segments, R, H, C]: the largest logit
  void* total; // [segments, R, H, C]: sum of exp(logit - top)
  void* sums;  // [segments, R, H, C, M]: sum of exp(logit - top) value
  size_t bytes;
};

// Without memory only `bytes` means something.
inline ForwardWorkspace forward_workspace(
    const SequencePoolParams& params,
    size_t acc_bytes,
    void* memory) {
  const size_t slots = static_cast<size_t>(
      segments_of(params) * params.rows * params.heads * params.slots);
  auto* top = static_cast<unsigned char*>(memory);
  return {
      top,
      top + slots * acc_bytes,
      top + 2 * slots * acc_bytes,
      slots * static_cast<size_t>(2 + params.value_dim) * acc_bytes};
}

// grad_lse - grad_output . output of every slot, [R, H, C].
inline size_t backward_workspace_bytes(
    const SequencePoolParams& params,
    size_t acc_bytes) {
  return static_cast<size_t>(params.rows * params.heads * params.slots) *
      acc_bytes;
}

} // namespace subquad::sequence_pool
