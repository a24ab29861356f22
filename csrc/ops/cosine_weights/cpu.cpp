#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <c10/util/MathConstants.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "ops/cosine_weights/cosine_weights.h"

namespace subquad {

namespace {

constexpr const char* kOp = "cosine_weights";

void check_positions(const at::Tensor& position, int64_t max_length) {
  const int64_t* data = position.const_data_ptr<int64_t>();
  const int64_t* last = std::max_element(data, data + position.numel());
  TORCH_CHECK_VALUE(
      position.numel() == 0 || *last < max_length,
      kOp,
      ": position must be less than max_length = ",
      max_length,
      ", got ",
      *last);
}

at::Tensor cosine_weights_cpu(
    const at::Tensor& given_position,
    std::optional<c10::SymInt> max_length,
    const OptionalTensor& given_lengths,
    std::optional<at::ScalarType> dtype) {
  const CosineWeightsArguments arguments{max_length, given_lengths, dtype};
  check_cosine_weights(given_position, arguments);
  const at::Tensor position = given_position.contiguous();
  if (max_length.has_value()) {
    check_positions(position, max_length->expect_int());
  }
  const at::Tensor lengths =
      given_lengths.has_value() ? given_lengths->contiguous() : at::Tensor();
  const at::Tensor weights = empty_cosine_weights(position, arguments);

  const int64_t tokens = position.size(-1);
  const int64_t* places = position.const_data_ptr<int64_t>();
  const int64_t* limits =
      lengths.defined() ? lengths.const_data_ptr<int64_t>() : nullptr;
  const bool by_row = position.dim() == 2;
  const bool by_token = lengths.defined() && lengths.dim() == 2;
  AT_DISPATCH_FLOATING_TYPES(weights.scalar_type(), kOp, [&] {
    scalar_t* result = weights.mutable_data_ptr<scalar_t>(); // [B, N, 2]
    constexpr int64_t kGrain = 512;                          // tokens
    at::parallel_for(
        0, weights.numel() / 2, kGrain, [&](int64_t begin, int64_t end) {
          for (int64_t n = begin; n < end; ++n) {
            const int64_t token = n % tokens;
            const int64_t m = limits == nullptr
                ? max_length->expect_int()
                : std::max<int64_t>(limits[by_token ? n : n / tokens], 1);
            // In double: far positions keep their places.
            const double angle = c10::pi<double> / 2 *
                static_cast<double>(places[by_row ? n : token] + 1) /
                static_cast<double>(m);
            result[2 * n] = static_cast<scalar_t>(std::sin(angle));
            result[2 * n + 1] = static_cast<scalar_t>(std::cos(angle));
          }
        });
  });
  return weights;
}

TORCH_LIBRARY_IMPL(subquad, CPU, m) {
  m.impl("cosine_weights", &cosine_weights_cpu);
}

} // namespace

} // namespace subquad
