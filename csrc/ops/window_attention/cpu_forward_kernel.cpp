#include "ops/window_attention/cpu_kernel.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <memory>

#include "ops/window_attention/cpu_rows.h"

namespace subquad {

namespace {

template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
void forward_query(
    const WindowAttentionParams& params,
    const HeadRow& at,
    int64_t index,
    acc_t* logits, // [W + C]
    acc_t* sum) { // [M]
  const int64_t M = params.value_dim;
  const Sight sight = sight_of(params, at, index);
  const int64_t count =
      max_index(sight.keys.end - sight.keys.begin, 0) + sight.limit;
  logits_of<scalar_t>(params, at, sight, index, logits);
  acc_t top = -std::numeric_limits<acc_t>::infinity();
  for (int64_t n = 0; n < count; ++n) {
    top = logits[n] > top || std::isnan(logits[n]) ? logits[n] : top;
  }
  if (!std::isfinite(top) && top < 0) {
    top = 0;
  }
  acc_t total = 0;
  for (int64_t d = 0; d < M; ++d) {
    sum[d] = 0;
  }
  for (int64_t n = 0; n < count; ++n) {
    const acc_t weight = std::exp(logits[n] - top);
    total += weight;
    const acc_t factor =
        dropout_factor<acc_t>(params, at, sight, index, n);
    if (factor != 0) {
      const scalar_t* value = value_of<scalar_t>(params, at, sight, n);
      for (int64_t d = 0; d < M; ++d) {
        sum[d] += weight * factor * static_cast<acc_t>(value[d]);
      }
    }
  }
  auto* output = static_cast<scalar_t*>(params.output) +
      at.batch * params.output_stride.batch +
      at.head * params.output_stride.head + index * params.output_stride.row;
  for (int64_t d = 0; d < M; ++d) {
    output[d] = static_cast<scalar_t>(total == 0 ? acc_t(0) : sum[d] / total);
  }
  static_cast<acc_t*>(params.logsumexp)
      [(at.batch * params.heads + at.head) * params.query_length + index] =
          total == 0 ? -std::numeric_limits<acc_t>::infinity()
                     : top + std::log(total);
}

template <typename scalar_t>
void forward(const WindowAttentionParams& params) {
  using acc_t = at::opmath_type<scalar_t>;
  at::parallel_for(
      0, params.rows * params.heads, 1, [&](int64_t begin, int64_t end) {
        const int64_t most = most_logits(params);
        const std::unique_ptr<acc_t[]> scratch(
            new acc_t[most + params.value_dim]);
        for (int64_t task = begin; task < end; ++task) {
          const HeadRow at =
              head_row(params, task / params.heads, task % params.heads);
          for (int64_t i = 0; i < at.queries.length; ++i) {
            forward_query<scalar_t>(
                params,
                at,
                at.queries.start + i,
                scratch.get(),
                scratch.get() + most);
          }
        }
      });
}

void forward_kernel(
    const WindowAttentionParams& params,
    c10::ScalarType dtype) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, dtype, "window_attention", [&] {
        forward<scalar_t>(params);
      });
}

} // namespace

} // namespace subquad

namespace at::native {

ALSO_REGISTER_AVX512_DISPATCH(
    subquad_window_attention_forward_stub,
    &subquad::forward_kernel)

} // namespace at::native
