#include "ops/window_attention/cpu_kernel.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <memory>

#include "ops/window_attention/cpu_rows.h"

namespace subquad {

namespace {

// The weights of a query and the gradients of its logits, keys first.
template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
void logit_gradients(
    const WindowAttentionParams& params,
    const WindowAttentionGradients& gradients,
    const HeadRow& at,
    const Sight& sight,
    int64_t index,
    acc_t* weight, // after dropout
    acc_t* grad_logit) {
  const int64_t M = params.value_dim;
  const int64_t number =
      (at.batch * params.heads + at.head) * params.query_length + index;
  const acc_t lse = static_cast<const acc_t*>(params.logsumexp)[number];
  const scalar_t* output = vector_at<scalar_t>(
      params.output, params.output_stride, at.batch, at.head, index);
  const scalar_t* grad_output = vector_at<scalar_t>(
      gradients.grad_output,
      gradients.grad_output_stride,
      at.batch,
      at.head,
      index);
  acc_t delta = dot<acc_t>(output, grad_output, M);
  if (gradients.grad_logsumexp != nullptr) {
    delta -= static_cast<const acc_t*>(gradients.grad_logsumexp)[number];
  }
  const int64_t count = sight.keys.end - sight.keys.begin + sight.limit;
  logits_of<scalar_t>(params, at, sight, index, weight);
  const bool empty = std::isinf(lse) && lse < 0;
  for (int64_t n = 0; n < count; ++n) {
    const acc_t p = empty ? acc_t(0) : std::exp(weight[n] - lse);
    const acc_t factor = dropout_factor<acc_t>(params, at, sight, index, n);
    const acc_t grad_weight = factor == 0
        ? acc_t(0)
        : factor *
            dot<acc_t>(
                grad_output, value_of<scalar_t>(params, at, sight, n), M);
    weight[n] = p * factor;
    grad_logit[n] = empty ? acc_t(0) : p * (grad_weight - delta);
  }
}

template <typename acc_t, typename scalar_t>
void add_scaled(acc_t* sum, acc_t factor, const scalar_t* x, int64_t n) {
  for (int64_t d = 0; d < n; ++d) {
    sum[d] += factor * static_cast<acc_t>(x[d]);
  }
}

template <typename scalar_t, typename acc_t>
void store(scalar_t* out, const acc_t* x, int64_t n) {
  for (int64_t d = 0; d < n; ++d) {
    out[d] = static_cast<scalar_t>(x[d]);
  }
}

template <typename scalar_t>
struct Backward {
  using acc_t = at::opmath_type<scalar_t>;

  const WindowAttentionParams& params;
  const WindowAttentionGradients& gradients;
  const int64_t D = params.head_dim;
  const int64_t M = params.value_dim;
  const int64_t group = params.heads / params.key_heads;

  acc_t* scaled_query(
      acc_t* sum,
      const Sight& sight,
      const HeadRow& at,
      const acc_t* grad_logit) const {
    const acc_t scale = static_cast<acc_t>(params.scale);
    const auto* relative = static_cast<const scalar_t*>(params.relative_key);
    const auto* summary_relative =
        static_cast<const scalar_t*>(params.summary_relative_key);
    std::fill(sum, sum + D, acc_t(0));
    for (int64_t j = sight.keys.begin; j < sight.keys.end; ++j) {
      const acc_t ds = *grad_logit++;
      add_scaled(
          sum,
          scale * ds,
          vector_at<scalar_t>(
              params.key,
              params.key_stride,
              at.batch,
              at.key_head,
              at.keys.start + j),
          D);
      if (relative != nullptr) {
        add_scaled(
            sum,
            ds,
            relative + at.head * params.relative_key_head_stride +
                (j - sight.origin) * D,
            D);
      }
    }
    for (int64_t c = 0; c < sight.limit; ++c) {
      const acc_t ds = *grad_logit++;
      add_scaled(
          sum,
          scale * ds,
          vector_at<scalar_t>(
              params.summary_key,
              params.summary_key_stride,
              at.row,
              at.key_head,
              c),
          D);
      if (summary_relative != nullptr) {
        add_scaled(
            sum,
            ds,
            summary_relative +
                at.head * params.summary_relative_key_head_stride +
                (sight.limit - 1 - c) * D,
            D);
      }
    }
    return sum;
  }

  void row(int64_t row, int64_t key_head) const {
    const int64_t most = most_logits(params);
    HeadRow at = head_row(params, row, key_head * group);
    const int64_t keys = at.keys.length;
    const int64_t vectors = keys + params.summaries;
    const std::unique_ptr<acc_t[]> scratch(
        new acc_t[vectors * (D + M) + 2 * most + D]());
    acc_t* grad_key = scratch.get();
    acc_t* grad_value = grad_key + vectors * D;
    acc_t* weight = grad_value + vectors * M;
    acc_t* grad_logit = weight + most;
    acc_t* grad_query = grad_logit + most;
    for (int64_t head = key_head * group; head < (key_head + 1) * group;
         ++head) {
      at.head = head;
      for (int64_t i = at.queries.start;
           i < at.queries.start + at.queries.length;
           ++i) {
        const Sight sight = sight_of(params, at, i);
        logit_gradients<scalar_t>(
            params, gradients, at, sight, i, weight, grad_logit);
        if (gradients.grad_query != nullptr) {
          store(
              const_cast<scalar_t*>(vector_at<scalar_t>(
                  gradients.grad_query,
                  gradients.grad_query_stride,
                  at.batch,
                  head,
                  i)),
              scaled_query(grad_query, sight, at, grad_logit),
              D);
        }
        const scalar_t* query = vector_at<scalar_t>(
            params.query, params.query_stride, at.batch, head, i);
        const scalar_t* grad_output = vector_at<scalar_t>(
            gradients.grad_output,
            gradients.grad_output_stride,
            at.batch,
            head,
            i);
        const int64_t window = sight.keys.end - sight.keys.begin;
        for (int64_t n = 0; n < window + sight.limit; ++n) {
          const int64_t column =
              n < window ? sight.keys.begin + n : keys + n - window;
          add_scaled(
              grad_key + column * D,
              static_cast<acc_t>(params.scale) * grad_logit[n],
              query,
              D);
          if (weight[n] != 0) {
            add_scaled(grad_value + column * M, weight[n], grad_output, M);
          }
        }
      }
    }
    write(at, key_head, grad_key, grad_value);
  }

  void write(
      const HeadRow& at,
      int64_t key_head,
      const acc_t* grad_key,
      const acc_t* grad_value) const {
    const int64_t keys = at.keys.length;
    for (int64_t j = 0; j < keys; ++j) {
      if (gradients.grad_key != nullptr) {
        store(
            const_cast<scalar_t*>(vector_at<scalar_t>(
                gradients.grad_key,
                gradients.grad_key_stride,
                at.batch,
                key_head,
                at.keys.start + j)),
            grad_key + j * D,
            D);
      }
      if (gradients.grad_value != nullptr) {
        store(
            const_cast<scalar_t*>(vector_at<scalar_t>(
                gradients.grad_value,
                gradients.grad_value_stride,
                at.batch,
                key_head,
                at.keys.start + j)),
            grad_value + j * M,
            M);
      }
    }
    const int64_t first =
        (at.row * params.key_heads + key_head) * params.summaries;
    if (gradients.grad_summary_key != nullptr) {
      store(
          static_cast<scalar_t*>(gradients.grad_summary_key) + first * D,
          grad_key + keys * D,
          params.summaries * D);
    }
    if (gradients.grad_summary_value != nullptr) {
      store(
          static_cast<scalar_t*>(gradients.grad_summary_value) + first * M,
          grad_value + keys * M,
          params.summaries * M);
    }
  }

  // Keys outside every row's span.
  void clear(void* gradient, const Strides& stride, int64_t width) const {
    if (gradient == nullptr || params.key_spans == nullptr) {
      return;
    }
    for (int64_t b = 0; b < params.batch; ++b) {
      for (int64_t h = 0; h < params.key_heads; ++h) {
        for (int64_t j = 0; j < params.key_length; ++j) {
          auto* out = const_cast<scalar_t*>(
              vector_at<scalar_t>(gradient, stride, b, h, j));
          std::fill(out, out + width, scalar_t(0));
        }
      }
    }
  }

  // Tables are shared by rows, some by heads: one task sums each in order.
  void tables() const {
    const int64_t slots = window_slots(params.window);
    const int64_t most = most_logits(params);
    const int64_t table_heads = params.heads;
    const int64_t bias_size = params.window.block * slots;
    const int64_t bias_heads = params.bias_head_stride != 0 ? table_heads : 1;
    const int64_t relative_heads =
        params.relative_key_head_stride != 0 ? table_heads : 1;
    const int64_t summary_heads =
        params.summary_relative_key_head_stride != 0 ? table_heads : 1;
    const int64_t key_biases = params.batch * params.key_length;
    const auto buffer = [](const void* wanted, int64_t size) {
      return std::unique_ptr<acc_t[]>(
          wanted != nullptr ? new acc_t[size]() : nullptr);
    };
    const auto bias = buffer(gradients.grad_bias, bias_heads * bias_size);
    const auto key_bias = buffer(gradients.grad_key_bias, key_biases);
    const auto relative =
        buffer(gradients.grad_relative_key, relative_heads * slots * D);
    const int64_t summary_size = summary_heads * params.summary_relative_keys * D;
    const auto summary =
        buffer(gradients.grad_summary_relative_key, summary_size);
    const std::unique_ptr<acc_t[]> scratch(new acc_t[2 * most]);
    acc_t* grad_logit = scratch.get() + most;
    for (int64_t task = 0; task < params.rows * params.heads; ++task) {
      const HeadRow at =
          head_row(params, task / params.heads, task % params.heads);
      for (int64_t i = at.queries.start;
           i < at.queries.start + at.queries.length;
           ++i) {
        const Sight sight = sight_of(params, at, i);
        logit_gradients<scalar_t>(
            params, gradients, at, sight, i, scratch.get(), grad_logit);
        const scalar_t* query = vector_at<scalar_t>(
            params.query, params.query_stride, at.batch, at.head, i);
        const acc_t* ds = grad_logit;
        for (int64_t j = sight.keys.begin; j < sight.keys.end; ++j, ++ds) {
          const int64_t slot = j - sight.origin;
          if (bias) {
            bias[at.head % bias_heads * bias_size + sight.line * slots +
                 slot] += *ds;
          }
          if (key_bias) {
            key_bias[at.batch * params.key_length + at.keys.start + j] += *ds;
          }
          if (relative) {
            add_scaled(
                &relative[(at.head % relative_heads * slots + slot) * D],
                *ds,
                query,
                D);
          }
        }
        for (int64_t c = 0; c < sight.limit && summary; ++c, ++ds) {
          add_scaled(
              &summary
                  [(at.head % summary_heads * params.summary_relative_keys +
                    sight.limit - 1 - c) *
                   D],
              *ds,
              query,
              D);
        }
      }
    }
    const auto finish = [](void* out, const auto& sum, int64_t size) {
      if (sum) {
        store(static_cast<scalar_t*>(out), sum.get(), size);
      }
    };
    finish(gradients.grad_bias, bias, bias_heads * bias_size);
    finish(gradients.grad_key_bias, key_bias, key_biases);
    finish(gradients.grad_relative_key, relative, relative_heads * slots * D);
    finish(gradients.grad_summary_relative_key, summary, summary_size);
  }

  void run() const {
    clear(gradients.grad_key, gradients.grad_key_stride, D);
    clear(gradients.grad_value, gradients.grad_value_stride, M);
    at::parallel_for(
        0,
        params.rows * params.key_heads,
        1,
        [&](int64_t begin, int64_t end) {
          for (int64_t task = begin; task < end; ++task) {
            row(task / params.key_heads, task % params.key_heads);
          }
        });
    if (gradients.grad_bias != nullptr || gradients.grad_key_bias != nullptr ||
        gradients.grad_relative_key != nullptr ||
        gradients.grad_summary_relative_key != nullptr) {
      tables();
    }
  }
};

void backward_kernel(
    const WindowAttentionParams& params,
    const WindowAttentionGradients& gradients,
    c10::ScalarType dtype) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, dtype, "window_attention_backward", [&] {
        Backward<scalar_t>{params, gradients}.run();
      });
}

} // namespace

} // namespace subquad

namespace at::native {

ALSO_REGISTER_AVX512_DISPATCH(
    subquad_window_attention_backward_stub,
    &subquad::backward_kernel)

} // namespace at::native
