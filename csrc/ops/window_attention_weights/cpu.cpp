#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "ops/layout.h"
#include "ops/window_attention/cpu_arguments.h"
#include "ops/window_attention/cpu_rows.h"
#include "ops/window_attention_weights/signatures.h"

// Plain loops over the (query, key) pairs that see each other: a look at the
// weights is a diagnosis, and the result is as large as the work.
namespace subquad {

namespace {

// The row of each query of the tensor, [B, L]; -1 where there is none.
std::vector<int64_t> rows_of_queries(const WindowAttentionParams& params) {
  std::vector<int64_t> rows(params.batch * params.query_length, -1);
  for (int64_t row = 0; row < params.rows; ++row) {
    const HeadRow at = head_row(params, row, 0);
    const auto first =
        rows.begin() + at.batch * params.query_length + at.queries.start;
    std::fill(first, first + at.queries.length, row);
  }
  return rows;
}

int64_t
line_of(const WindowAttentionParams& params, const HeadRow& at, int64_t index) {
  return (at.batch * params.heads + at.head) * params.query_length + index;
}

// Calls visit(at, index) for every query of the tensor that belongs to a row.
template <typename Visit>
void for_each_query(const WindowAttentionParams& params, const Visit& visit) {
  const std::vector<int64_t> rows = rows_of_queries(params);
  const int64_t L = params.query_length;
  at::parallel_for(
      0,
      params.batch * params.heads * L,
      /*grain_size=*/64,
      [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          const int64_t index = n % L;
          const int64_t head = n / L % params.heads;
          const int64_t row = rows[n / L / params.heads * L + index];
          if (row >= 0) {
            visit(head_row(params, row, head), index);
          }
        }
      });
}

// Calls visit(line of weights, index, token, bias line, slot) for every pair of
// a query and a key that it sees.
template <typename Visit>
void for_each_pair(
    const WindowAttentionParams& params,
    const HeadRow& at,
    const Visit& visit) {
  for (int64_t i = 0; i < at.queries.length; ++i) {
    const int64_t index = at.queries.start + i;
    const Sight sight = sight_of(params, at, index);
    for (int64_t j = sight.keys.begin; j < sight.keys.end; ++j) {
      visit(
          line_of(params, at, index),
          index,
          at.keys.start + j,
          sight.line,
          j - sight.origin);
    }
  }
}

template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
void forward(const WindowAttentionParams& params, scalar_t* weights) {
  const int64_t W = window_slots(params.window);
  const acc_t* lse = static_cast<const acc_t*>(params.logsumexp);
  for_each_query(params, [&](const HeadRow& at, int64_t index) {
    const int64_t line = line_of(params, at, index);
    if (lse[line] == -std::numeric_limits<acc_t>::infinity()) {
      return;
    }
    const Sight sight = sight_of(params, at, index);
    const int64_t keys = max_index(sight.keys.end - sight.keys.begin, 0);
    const auto logits = std::make_unique<acc_t[]>(keys);
    logits_of<scalar_t>(params, at, sight, index, logits.get());
    scalar_t* slots = weights + line * W + sight.keys.begin - sight.origin;
    for (int64_t n = 0; n < keys; ++n) {
      slots[n] = static_cast<scalar_t>(std::exp(logits[n] - lse[line]));
    }
  });
}

// The gradients of the dense [B, H, L, W] logits are grad * weights.
template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
class Backward {
 public:
  Backward(
      const WindowAttentionParams& params,
      const scalar_t* grad,
      const scalar_t* weights)
      : params_(params), grad_(grad), weights_(weights) {}

  void query_and_lse(scalar_t* grad_query, Strides stride, acc_t* grad_lse)
      const {
    const int64_t D = params_.head_dim;
    for_each_query(params_, [&](const HeadRow& at, int64_t index) {
      const int64_t line = line_of(params_, at, index);
      const Sight sight = sight_of(params_, at, index);
      const auto sum = std::make_unique<acc_t[]>(D);
      acc_t total = 0;
      for (int64_t j = sight.keys.begin; j < sight.keys.end; ++j) {
        const int64_t slot = j - sight.origin;
        const acc_t grad = of_logit(line, slot);
        const scalar_t* key = vector_at<scalar_t>(
            params_.key,
            params_.key_stride,
            at.batch,
            at.key_head,
            at.keys.start + j);
        add(grad * scale(), key, sum.get());
        if (params_.relative_key != nullptr) {
          add(grad, relative_key(at.head, slot), sum.get());
        }
        total += grad;
      }
      if (grad_query != nullptr) {
        store(
            sum.get(),
            D,
            grad_query + at.batch * stride.batch + at.head * stride.head +
                index * stride.row);
      }
      if (grad_lse != nullptr) {
        grad_lse[line] = -total;
      }
    });
  }

  void key(scalar_t* grad_key, Strides stride) const {
    const int64_t D = params_.head_dim;
    const int64_t group = params_.heads / params_.key_heads;
    for_each_task(
        params_.rows * params_.key_heads, [&](int64_t row, int64_t key_head) {
          const HeadRow first = head_row(params_, row, key_head * group);
          const auto sum = std::make_unique<acc_t[]>(first.keys.length * D);
          for (int64_t h = 0; h < group; ++h) {
            const HeadRow at = head_row(params_, row, first.head + h);
            for_each_pair(
                params_,
                at,
                [&](int64_t line,
                    int64_t index,
                    int64_t token,
                    int64_t /* bias_line */,
                    int64_t slot) {
                  add(of_logit(line, slot) * scale(),
                      query_at(at, index),
                      sum.get() + (token - at.keys.start) * D);
                });
          }
          for (int64_t j = 0; j < first.keys.length; ++j) {
            store(
                sum.get() + j * D,
                D,
                grad_key + first.batch * stride.batch + key_head * stride.head +
                    (first.keys.start + j) * stride.row);
          }
        });
  }

  void key_bias(scalar_t* grad_key_bias) const {
    at::parallel_for(0, params_.rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const HeadRow first = head_row(params_, row, 0);
        const auto sum = std::make_unique<acc_t[]>(first.keys.length);
        for (int64_t head = 0; head < params_.heads; ++head) {
          for_each_pair(
              params_,
              head_row(params_, row, head),
              [&](int64_t line,
                  int64_t /* index */,
                  int64_t token,
                  int64_t /* bias_line */,
                  int64_t slot) {
                sum[token - first.keys.start] += of_logit(line, slot);
              });
        }
        store(
            sum.get(),
            first.keys.length,
            grad_key_bias + first.batch * params_.key_length +
                first.keys.start);
      }
    });
  }

  void bias(scalar_t* grad_bias) const {
    const int64_t W = window_slots(params_.window);
    for_each_table(
        params_.bias_head_stride,
        params_.window.block * W,
        grad_bias,
        [&](const HeadRow& at, acc_t* sum) {
          for_each_pair(
              params_,
              at,
              [&](int64_t line,
                  int64_t /* index */,
                  int64_t /* token */,
                  int64_t bias_line,
                  int64_t slot) {
                sum[bias_line * W + slot] += of_logit(line, slot);
              });
        });
  }

  void relative_key(scalar_t* grad_relative_key) const {
    const int64_t D = params_.head_dim;
    for_each_table(
        params_.relative_key_head_stride,
        window_slots(params_.window) * D,
        grad_relative_key,
        [&](const HeadRow& at, acc_t* sum) {
          for_each_pair(
              params_,
              at,
              [&](int64_t line,
                  int64_t index,
                  int64_t /* token */,
                  int64_t /* bias_line */,
                  int64_t slot) {
                add(of_logit(line, slot), query_at(at, index), sum + slot * D);
              });
        });
  }

 private:
  acc_t of_logit(int64_t line, int64_t slot) const {
    const int64_t n = line * window_slots(params_.window) + slot;
    return static_cast<acc_t>(grad_[n]) * static_cast<acc_t>(weights_[n]);
  }

  acc_t scale() const {
    return static_cast<acc_t>(params_.scale);
  }

  const scalar_t* query_at(const HeadRow& at, int64_t index) const {
    return vector_at<scalar_t>(
        params_.query, params_.query_stride, at.batch, at.head, index);
  }

  const scalar_t* relative_key(int64_t head, int64_t slot) const {
    return static_cast<const scalar_t*>(params_.relative_key) +
        head * params_.relative_key_head_stride + slot * params_.head_dim;
  }

  void add(acc_t factor, const scalar_t* vector, acc_t* sum) const {
    for (int64_t d = 0; d < params_.head_dim; ++d) {
      sum[d] += factor * static_cast<acc_t>(vector[d]);
    }
  }

  static void store(const acc_t* sum, int64_t size, scalar_t* result) {
    for (int64_t d = 0; d < size; ++d) {
      result[d] = static_cast<scalar_t>(sum[d]);
    }
  }

  template <typename Work>
  void for_each_task(int64_t tasks, const Work& work) const {
    at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        work(n / params_.key_heads, n % params_.key_heads);
      }
    });
  }

  // Sums a table over all rows, and over the heads that share it.
  template <typename AddRow>
  void for_each_table(
      int64_t head_stride,
      int64_t size,
      scalar_t* result,
      const AddRow& add_row) const {
    const int64_t tables = head_stride == 0 ? 1 : params_.heads;
    const int64_t shared = params_.heads / tables;
    at::parallel_for(0, tables, 1, [&](int64_t begin, int64_t end) {
      for (int64_t table = begin; table < end; ++table) {
        const auto sum = std::make_unique<acc_t[]>(size);
        for (int64_t n = 0; n < params_.rows * shared; ++n) {
          const int64_t head = table * shared + n % shared;
          add_row(head_row(params_, n / shared, head), sum.get());
        }
        store(sum.get(), size, result + table * size);
      }
    });
  }

  const WindowAttentionParams& params_;
  const scalar_t* grad_;    // [B, H, L, W], dense
  const scalar_t* weights_; // [B, H, L, W], dense
};

at::Tensor forward_cpu(
    const WindowAttentionWeightsInputs& inputs,
    const WindowAttentionOptions& options) {
  check_window_attention_weights(inputs, options);
  const DenseArguments arguments(inputs.attention, options);
  const at::Tensor lse = arguments.queries.gather(inputs.lse).contiguous();
  at::Tensor weights = empty_window_attention_weights(inputs, options);
  if (weights.numel() == 0) {
    return weights;
  }
  const at::Tensor row_weights = arguments.queries.workspace(weights);
  row_weights.zero_();
  WindowAttentionParams params = make_params(arguments);
  params.logsumexp = const_cast<void*>(lse.const_data_ptr());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf,
      at::kBFloat16,
      weights.scalar_type(),
      "window_attention_weights",
      [&] {
        forward<scalar_t>(params, row_weights.mutable_data_ptr<scalar_t>());
      });
  arguments.queries.scatter(row_weights, weights);
  return weights;
}

WindowAttentionWeightsGradients backward_cpu(
    const at::Tensor& grad,
    const at::Tensor& weights,
    const WindowAttentionWeightsInputs& inputs,
    const WindowAttentionOptions& options,
    std::array<bool, 6> output_mask) {
  const WindowAttentionWeightsGradients result =
      empty_window_attention_weights_gradients(inputs, output_mask);
  std::apply([](const auto&... tensors) { (tensors.zero_(), ...); }, result);
  if (weights.numel() == 0) {
    return result;
  }
  const DenseArguments arguments(inputs.attention, options);
  const Rows& queries = arguments.queries;
  const Rows& keys = arguments.keys;
  const at::Tensor row_grad = queries.gather(grad.contiguous());
  const at::Tensor row_weights = queries.gather(weights.contiguous());
  const auto& [query, key, lse, bias, key_bias, relative_key] = result;
  const at::Tensor row_query = queries.workspace(query);
  const at::Tensor row_key = keys.workspace(key);
  const at::Tensor row_lse = queries.workspace(lse);
  const at::Tensor row_key_bias = keys.workspace(key_bias);
  const WindowAttentionParams params = make_params(arguments);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf,
      at::kBFloat16,
      weights.scalar_type(),
      "window_attention_weights_backward",
      [&] {
        using acc_t = at::opmath_type<scalar_t>;
        const Backward<scalar_t> backward(
            params,
            row_grad.const_data_ptr<scalar_t>(),
            row_weights.const_data_ptr<scalar_t>());
        const auto data = [&](size_t index, const at::Tensor& tensor) {
          return output_mask[index] ? tensor.mutable_data_ptr<scalar_t>()
                                    : nullptr;
        };
        if (output_mask[0] || output_mask[2]) {
          backward.query_and_lse(
              data(0, row_query),
              output_mask[0] ? strides_of(row_query) : Strides{},
              output_mask[2] ? row_lse.mutable_data_ptr<acc_t>() : nullptr);
        }
        if (output_mask[1]) {
          backward.key(data(1, row_key), strides_of(row_key));
        }
        if (output_mask[3]) {
          backward.bias(data(3, bias));
        }
        if (output_mask[4]) {
          backward.key_bias(data(4, row_key_bias));
        }
        if (output_mask[5]) {
          backward.relative_key(data(5, relative_key));
        }
      });
  const auto scatter = [&](size_t index,
                           const Rows& rows,
                           const at::Tensor& from,
                           const at::Tensor& to) {
    if (output_mask[index]) {
      rows.scatter(from, to);
    }
  };
  scatter(0, queries, row_query, query);
  scatter(1, keys, row_key, key);
  scatter(2, queries, row_lse, lse);
  scatter(4, keys, row_key_bias, key_bias);
  return result;
}

TORCH_LIBRARY_IMPL(subquad, CPU, m) {
  m.impl(
      "_window_attention_weights_forward",
      WindowAttentionWeightsForward<&forward_cpu>::call);
  m.impl(
      "_window_attention_weights_backward",
      WindowAttentionWeightsBackward<&backward_cpu>::call);
}

} // namespace

} // namespace subquad
