#pragma once

#include <string_view>

#include "ops/optional.h"
#include "ops/random_features/random_features.h"

// The dispatcher wants flat argument lists. Each list stands here once; the
// functions behind it take (inputs, options).
namespace subquad {

// _random_features_forward
template <auto function>
struct RandomFeaturesForward {
  static RandomFeaturesOutputs call(
      const at::Tensor& input,
      const at::Tensor& projection,
      const OptionalTensor& initial_log_scale,
      std::string_view kind,
      std::string_view stabilizer,
      bool stabilizer_gradient,
      double eps,
      double scale,
      const OptionalTensor& spans,
      bool packed,
      const OptionalTensor& order) {
    return function(
        RandomFeaturesInputs{input, projection, initial_log_scale},
        RandomFeaturesOptions{
            std::string(kind),
            std::string(stabilizer),
            stabilizer_gradient,
            eps,
            scale,
            spans,
            packed,
            order});
  }
};

// What backward gets besides inputs and options.
struct RandomFeaturesSaved {
  OptionalTensor grad_features;
  OptionalTensor grad_log_scale;
  at::Tensor log_scale;
};

// _random_features_backward
template <auto function>
struct RandomFeaturesBackward {
  static RandomFeaturesGradientTensors call(
      const OptionalTensor& grad_features,
      const OptionalTensor& grad_log_scale,
      const at::Tensor& log_scale,
      const at::Tensor& input,
      const at::Tensor& projection,
      const OptionalTensor& initial_log_scale,
      std::string_view kind,
      std::string_view stabilizer,
      bool stabilizer_gradient,
      double eps,
      double scale,
      const OptionalTensor& spans,
      bool packed,
      const OptionalTensor& order,
      std::array<bool, 3> output_mask) {
    return function(
        RandomFeaturesSaved{grad_features, grad_log_scale, log_scale},
        RandomFeaturesInputs{input, projection, initial_log_scale},
        RandomFeaturesOptions{
            std::string(kind),
            std::string(stabilizer),
            stabilizer_gradient,
            eps,
            scale,
            spans,
            packed,
            order},
        output_mask);
  }
};

// random_features: lengths, starts and cu_seqlens become spans, the scale gets
// its default.
RandomFeaturesOptions make_random_features_options(
    const RandomFeaturesInputs& inputs,
    RandomFeaturesOptions options,
    const OptionalTensor& lengths,
    const OptionalTensor& starts,
    const OptionalTensor& cu_seqlens,
    std::optional<double> scale);

template <auto function>
struct RandomFeaturesPublic {
  static RandomFeaturesOutputs call(
      const at::Tensor& input,
      const at::Tensor& projection,
      std::string_view kind,
      std::string_view stabilizer,
      bool stabilizer_gradient,
      double eps,
      std::optional<double> scale,
      const OptionalTensor& initial_log_scale,
      const OptionalTensor& lengths,
      const OptionalTensor& starts,
      const OptionalTensor& order,
      const OptionalTensor& cu_seqlens) {
    const RandomFeaturesInputs inputs{input, projection, initial_log_scale};
    return function(
        inputs,
        make_random_features_options(
            inputs,
            RandomFeaturesOptions{
                std::string(kind),
                std::string(stabilizer),
                stabilizer_gradient,
                eps,
                1.0,
                std::nullopt,
                false,
                order},
            lengths,
            starts,
            cu_seqlens,
            scale));
  }
};

} // namespace subquad
