#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>

#include "common/random_features.h"

namespace subquad {

// Random features of tokens, whose products estimate a kernel. With p =
// scale x W^T for the rows w of a projection and n = scale^2 |x|^2 / 2:
//
//   positive        R^-1/2 exp(p - n - m) + eps       softmax kernel
//                   (Choromanski et al. 2021, arXiv:2009.14794, lemma 1)
//   trigonometric   R^-1/2 exp(n - m) [sin p, cos p] + eps
//                   softmax kernel (Peng et al. 2021, arXiv:2103.02143)
//   sincos          R^-1/2 [sin p, cos p] + eps       Gaussian kernel
//                   (Rahimi and Recht 2007)
//   relu            max(R^-1/2 p, 0) + eps            ReLU kernel
//
// m, the log scale, is a maximum that bounds the exponential: of p over the
// features for positive, n for trigonometric. Over which tokens `stabilizer`
// says: none (m = 0), token, row, or prefix (up to the token: nothing comes
// from the future). With initial_log_scale m is at least that, so that a
// sequence can be continued; m begins at -inf otherwise.
//
// Gradients flow through m unless stabilizer_gradient is false: equally to
// features (and, for row, tokens) that share the maximum, as torch.amax does;
// for prefix to the last token that attained it, as torch.cummax does.
//
// Shapes: input [B, H, L, D], projection [Hp, R, D] with H % Hp == 0, features
// [B, H, L, R or 2 R], log_scale [B, H, L] (for initial_log_scale [rows, H]) in
// float32 (float64 for float64). dtypes: float64, float32, bfloat16, float16.
// Rows are as in linear_attention; tokens outside have zero features and log
// scale 0. Cost: O(L D R) time; memory of inputs and results.
// Differentiable: input, projection, initial_log_scale.
struct RandomFeaturesOptions {
  std::string kind = "positive";
  std::string stabilizer = "token";
  bool stabilizer_gradient = true;
  double eps = 0.0;
  double scale = 1.0;
  std::optional<at::Tensor> spans; // [R, 2] int64
  bool packed = false;
  std::optional<at::Tensor> order; // [B, L] int64
};

struct RandomFeaturesInputs {
  at::Tensor input;
  at::Tensor projection;
  std::optional<at::Tensor> initial_log_scale; // [R, H]
};

using RandomFeaturesOutputs = std::tuple<at::Tensor, at::Tensor>;
using RandomFeaturesGradientTensors =
    std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// Refuse unknown names.
RandomFeatures parse_random_features(const std::string& name);
Stabilizer parse_stabilizer(const std::string& name);

// The checks that need no data; every backend calls them.
void check_random_features(
    const RandomFeaturesInputs& inputs,
    const RandomFeaturesOptions& options);

RandomFeaturesOutputs empty_random_features_outputs(
    const RandomFeaturesInputs& inputs,
    const RandomFeaturesOptions& options);
RandomFeaturesGradientTensors empty_random_features_gradients(
    const RandomFeaturesInputs& inputs,
    std::array<bool, 3> output_mask);

} // namespace subquad
