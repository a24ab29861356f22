#pragma once

#include <cstddef>
#include <cstdint>

#include "common/random_features.h"

// The memory between the kernels of random features' backward pass.
namespace subquad::random_features {

struct BackwardWorkspace {
  void* share;      // [B, H, L], accumulation type
  int* ties;        // [B, H, L]
  void* projection; // [segments, Hp, R, D], accumulation type
  int64_t segments; // parts of the sum over tokens
  size_t bytes;
};

// Whether a gradient flows through m.
inline bool has_scale_gradient(const RandomFeaturesParams& params) {
  return params.stabilizer_gradient && is_exponential(params.kind) &&
      params.stabilizer != Stabilizer::kNone;
}

// `acc_bytes`: size of the accumulation type. Without memory only `bytes` and
// the segments mean something.
inline BackwardWorkspace backward_workspace(
    const RandomFeaturesParams& params,
    const RandomFeaturesGradients& gradients,
    size_t acc_bytes,
    void* memory) {
  BackwardWorkspace workspace{};
  // Enough tokens to each part that all of them take no more memory than the
  // gradient of the features, and few enough parts to fold.
  constexpr int64_t kSegment = 512;
  constexpr int64_t kMaxSegments = 64;
  const int64_t tokens = params.batch * params.length *
      (params.heads / max_index(params.projection_heads, 1));
  workspace.segments = max_index(min_index(tokens / kSegment, kMaxSegments), 1);
  const auto take = [&](bool wanted, int64_t elements, size_t size) -> void* {
    if (!wanted) {
      return nullptr;
    }
    void* address = static_cast<unsigned char*>(memory) + workspace.bytes;
    workspace.bytes += (static_cast<size_t>(elements) * size + 15) / 16 * 16;
    return address;
  };
  const int64_t lines = params.batch * params.heads * params.length;
  workspace.share = take(has_scale_gradient(params), lines, acc_bytes);
  workspace.ties =
      static_cast<int*>(take(has_scale_gradient(params), lines, sizeof(int)));
  workspace.projection = take(
      gradients.grad_projection != nullptr,
      workspace.segments * params.projection_heads * params.projections *
          params.head_dim,
      acc_bytes);
  return workspace;
}

} // namespace subquad::random_features
