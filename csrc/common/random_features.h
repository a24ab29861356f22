#pragma once

#include <cstdint>

#include "common/index.h"
#include "common/strides.h"

// What the CPU and the CUDA kernels of random features are told. No tensor
// appears here: sizes, strides in elements and untyped pointers.
namespace subquad {

enum class RandomFeatures : int32_t {
  kPositive,      // R^-1/2 exp(p - n - m) + eps
  kTrigonometric, // R^-1/2 exp(n - m) [sin p, cos p] + eps
  kSinCos,        // R^-1/2 [sin p, cos p] + eps
  kRelu,          // max(R^-1/2 p, 0) + eps
};

// What m, which keeps the exponentials bounded, is the maximum of: for
// kPositive of the projections p of all features, for kTrigonometric of n.
enum class Stabilizer : int32_t {
  kNone,   // m = 0
  kToken,  // of the token alone
  kRow,    // of all valid tokens of the row
  kPrefix, // of the tokens of the row up to this one
};

// Features that a maximum keeps bounded.
SUBQUAD_HOST_DEVICE inline bool is_exponential(RandomFeatures kind) {
  return kind == RandomFeatures::kPositive ||
      kind == RandomFeatures::kTrigonometric;
}

SUBQUAD_HOST_DEVICE inline int64_t random_feature_count(
    RandomFeatures kind,
    int64_t projections) {
  return kind == RandomFeatures::kTrigonometric ||
          kind == RandomFeatures::kSinCos
      ? 2 * projections
      : projections;
}

struct RandomFeaturesParams {
  int64_t batch;            // B; 1 when rows are packed
  int64_t rows;             // R spans; B unless packed
  int64_t heads;            // H
  int64_t projection_heads; // Hp, divides H; head h uses h / (H / Hp)
  int64_t length;           // L
  int64_t head_dim;         // D
  int64_t projections;      // R of the formulas
  int64_t features;         // R or 2 R
  bool packed;              // every row lies in batch 0

  RandomFeatures kind;
  Stabilizer stabilizer;
  bool stabilizer_gradient; // else m is taken as a constant
  double eps;
  double scale; // p = scale x W^T, n = scale^2 |x|^2 / 2

  // As in LinearAttentionParams.
  const int64_t* spans; // [R, 2]
  const int64_t* order; // [B, L]; null on the CPU

  const void* input; // [B, H, L, D]
  Strides input_stride;
  const void* projection;        // [Hp, R, D], dense
  const void* initial_log_scale; // [R, H], dense, accumulation dtype, or null

  void* output; // [B, H, L, features]
  Strides output_stride;
  void* log_scale; // [B, H, L], dense, accumulation dtype: m
};

// Backward: log_scale of the params is an input here. A null gradient is not
// wanted (those that are written) or zero (those that are read).
struct RandomFeaturesGradients {
  const void* grad_output; // [B, H, L, features]
  Strides grad_output_stride;
  const void* grad_log_scale; // [B, H, L], dense

  void* grad_input; // [B, H, L, D]
  Strides grad_input_stride;
  void* grad_projection;        // [Hp, R, D], dense
  void* grad_initial_log_scale; // [R, H], dense
};

} // namespace subquad
