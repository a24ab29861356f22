#include "ops/merge_attention/cpu_kernel.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>

#include <algorithm>

#include "common/index.h"
#include "common/merge.h"

namespace subquad {

namespace {

// Calls visit(line, offset), line = (b * H + h) * L + l, where offset(stride)
// is the place of the line's vector in a tensor.
template <typename Visit>
void for_each_line(const MergeAttentionParams& params, const Visit& visit) {
  const int64_t L = params.length;
  const int64_t H = params.heads;
  at::parallel_for(
      0,
      params.batch * H * L,
      ceil_divide(16384, max_index(params.width, 1)),
      [&](int64_t begin, int64_t end) {
        for (int64_t line = begin; line < end; ++line) {
          const int64_t l = line % L;
          const int64_t h = line / L % H;
          const int64_t b = line / L / H;
          visit(line, [=](const Strides& stride) {
            return b * stride.batch + h * stride.head + l * stride.row;
          });
        }
      });
}

template <typename scalar_t>
void scale_vector(
    at::opmath_type<scalar_t> factor,
    const scalar_t* vector,
    scalar_t* result,
    int64_t width) {
  using Vec = at::vec::Vectorized<at::opmath_type<scalar_t>>;
  at::vec::map<scalar_t>(
      [factor](Vec x) { return x * Vec(factor); }, result, vector, width);
}

// A side without keys is not read: whatever stands there has no part in the
// result.
template <typename scalar_t>
void forward(const MergeAttentionParams& params) {
  using acc_t = at::opmath_type<scalar_t>;
  using Vec = at::vec::Vectorized<acc_t>;
  const int64_t M = params.width;
  const auto* lse_a = static_cast<const acc_t*>(params.lse_a);
  const auto* lse_b = static_cast<const acc_t*>(params.lse_b);
  auto* lse = static_cast<acc_t*>(params.lse);
  for_each_line(params, [&](int64_t line, const auto& offset) {
    const scalar_t* a = static_cast<const scalar_t*>(params.output_a) +
        offset(params.output_a_stride);
    const scalar_t* b = static_cast<const scalar_t*>(params.output_b) +
        offset(params.output_b_stride);
    scalar_t* result =
        static_cast<scalar_t*>(params.output) + offset(params.output_stride);
    const Merged<acc_t> merged = merge_lse(lse_a[line], lse_b[line]);
    lse[line] = merged.lse;
    const bool empty_a = is_empty_lse(lse_a[line]);
    const bool empty_b = is_empty_lse(lse_b[line]);
    if (empty_a && empty_b) {
      std::fill(result, result + M, scalar_t(0));
    } else if (empty_a || empty_b) {
      const scalar_t* other = empty_a ? b : a;
      std::copy(other, other + M, result);
    } else {
      at::vec::map2<scalar_t>(
          [&merged](Vec x, Vec y) {
            return x * Vec(merged.weight_a) + y * Vec(merged.weight_b);
          },
          result,
          a,
          b,
          M);
    }
  });
}

template <typename scalar_t>
at::opmath_type<scalar_t> dot_with_difference(
    const scalar_t* grad,
    const scalar_t* a,
    const scalar_t* b,
    int64_t width) {
  using Vec = at::vec::Vectorized<at::opmath_type<scalar_t>>;
  if (width == 0) {
    return 0;
  }
  return at::vec::map3_reduce_all<scalar_t>(
      [](Vec g, Vec x, Vec y) { return g * (x - y); },
      [](Vec x, Vec y) { return x + y; },
      grad,
      a,
      b,
      width);
}

// With o = w_a a + w_b b and s = log(exp(s_a) + exp(s_b)):
//   da = w_a do,   ds_a = w_a w_b do . (a - b) + w_a ds
//   db = w_b do,   ds_b = -w_a w_b do . (a - b) + w_b ds
template <typename scalar_t>
void backward(
    const MergeAttentionParams& params,
    const MergeAttentionGradients& gradients) {
  using acc_t = at::opmath_type<scalar_t>;
  const int64_t M = params.width;
  const auto* lse_a = static_cast<const acc_t*>(params.lse_a);
  const auto* lse_b = static_cast<const acc_t*>(params.lse_b);
  const auto* grad_lse = static_cast<const acc_t*>(gradients.grad_lse);
  auto* grad_lse_a = static_cast<acc_t*>(gradients.grad_lse_a);
  auto* grad_lse_b = static_cast<acc_t*>(gradients.grad_lse_b);
  for_each_line(params, [&](int64_t line, const auto& offset) {
    const scalar_t* grad = gradients.grad_output == nullptr
        ? nullptr
        : static_cast<const scalar_t*>(gradients.grad_output) +
            offset(gradients.grad_output_stride);
    const Merged<acc_t> merged = merge_lse(lse_a[line], lse_b[line]);
    const bool empty_a = is_empty_lse(lse_a[line]);
    const bool empty_b = is_empty_lse(lse_b[line]);
    const auto scaled =
        [&](void* data, const Strides& stride, bool empty, acc_t weight) {
          if (data == nullptr) {
            return;
          }
          scalar_t* result = static_cast<scalar_t*>(data) + offset(stride);
          if (empty || grad == nullptr) {
            std::fill(result, result + M, scalar_t(0));
          } else {
            scale_vector(weight, grad, result, M);
          }
        };
    scaled(
        gradients.grad_output_a,
        gradients.grad_output_a_stride,
        empty_a,
        merged.weight_a);
    scaled(
        gradients.grad_output_b,
        gradients.grad_output_b_stride,
        empty_b,
        merged.weight_b);
    if (grad_lse_a == nullptr && grad_lse_b == nullptr) {
      return;
    }
    const acc_t grad_all = grad_lse == nullptr ? acc_t(0) : grad_lse[line];
    acc_t moved = 0; // from b to a
    if (grad != nullptr && !empty_a && !empty_b) {
      moved = merged.weight_a * merged.weight_b *
          dot_with_difference(
                  grad,
                  static_cast<const scalar_t*>(params.output_a) +
                      offset(params.output_a_stride),
                  static_cast<const scalar_t*>(params.output_b) +
                      offset(params.output_b_stride),
                  M);
    }
    if (grad_lse_a != nullptr) {
      grad_lse_a[line] =
          empty_a ? acc_t(0) : merged.weight_a * grad_all + moved;
    }
    if (grad_lse_b != nullptr) {
      grad_lse_b[line] =
          empty_b ? acc_t(0) : merged.weight_b * grad_all - moved;
    }
  });
}

void forward_kernel(const MergeAttentionParams& params, c10::ScalarType dtype) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, dtype, "merge_attention", [&] {
        forward<scalar_t>(params);
      });
}

void backward_kernel(
    const MergeAttentionParams& params,
    const MergeAttentionGradients& gradients,
    c10::ScalarType dtype) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, dtype, "merge_attention_backward", [&] {
        backward<scalar_t>(params, gradients);
      });
}

} // namespace

} // namespace subquad

namespace at::native {

ALSO_REGISTER_AVX512_DISPATCH(
    subquad_merge_attention_forward_stub,
    &subquad::forward_kernel)
ALSO_REGISTER_AVX512_DISPATCH(
    subquad_merge_attention_backward_stub,
    &subquad::backward_kernel)

} // namespace at::native
