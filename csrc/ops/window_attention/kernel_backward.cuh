#pragma once

#include "ops/window_attention/kernel_backward_key.cuh"
#include "ops/window_attention/kernel_backward_query.cuh"

// Backward of window attention: what is computed before the gradients' kernels,
// the sums over their parts, and the dispatch of all.
namespace subquad::cuda {

constexpr int kRowWarps = 4;
constexpr int kSumThreads = 128;

// delta = rowsum(dO o O) - dlse. A warp per query; `queries` of them.
template <typename scalar_t>
__global__ void window_attention_delta_kernel(
    WindowAttentionParams params,
    WindowAttentionGradients gradients,
    acc_t<scalar_t>* delta, // [B, H, L]
    int64_t queries) {
  using acc = acc_t<scalar_t>;
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kRowWarps +
      static_cast<int>(threadIdx.x) / kWarpSize;
  if (number >= queries) {
    return;
  }
  const int64_t token = number % params.query_length;
  const int64_t head = number / params.query_length % params.heads;
  const int64_t batch = number / params.query_length / params.heads;
  const scalar_t* output = row_pointer<scalar_t>(
      params.output, params.output_stride, batch, head, token);
  const scalar_t* grad_output = row_pointer<scalar_t>(
      gradients.grad_output, gradients.grad_output_stride, batch, head, token);
  acc sum = 0;
  for (int64_t d = lane_index(); d < params.value_dim; d += kWarpSize) {
    sum += to_acc(output[d]) * to_acc(grad_output[d]);
  }
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, distance);
  }
  if (lane_index() == 0) {
    delta[number] = gradients.grad_logsumexp == nullptr
        ? sum
        : sum - static_cast<const acc*>(gradients.grad_logsumexp)[number];
  }
}

// result[i] = sum over p of parts[p][i], in this order. A thread per element.
template <typename scalar_t>
__global__ void window_attention_sum_kernel(
    const acc_t<scalar_t>* parts, // [count, size]
    scalar_t* result,             // [size]
    int64_t count,
    int64_t size) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreads +
      static_cast<int>(threadIdx.x);
  if (i >= size) {
    return;
  }
  acc_t<scalar_t> sum = 0;
  for (int64_t part = 0; part < count; ++part) {
    sum += parts[part * size + i];
  }
  result[i] = from_acc<scalar_t>(sum);
}

// The same over the key heads, from ranks to tokens. With an order only what
// belongs to a row is written.
template <typename scalar_t>
__global__ void window_attention_key_bias_kernel(
    WindowAttentionParams params,
    const acc_t<scalar_t>* parts, // [Hkv, B, S]
    scalar_t* result) {           // [B, S]
  const int64_t size = params.batch * params.key_length;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreads +
      static_cast<int>(threadIdx.x);
  if (i >= size) {
    return;
  }
  const int64_t batch = i / params.key_length;
  const int64_t rank = i % params.key_length;
  if (params.key_order != nullptr) {
    const Span span =
        clamped_row_span(params.key_spans, batch, params.key_length);
    if (rank < span.start || rank >= span.start + span.length) {
      return;
    }
  }
  acc_t<scalar_t> sum = 0;
  for (int64_t head = 0; head < params.key_heads; ++head) {
    sum += parts[head * size + i];
  }
  result[batch * params.key_length + key_token(params, batch, rank)] =
      from_acc<scalar_t>(sum);
}

template <typename scalar_t, typename Launcher>
int launch_delta(
    Launcher&& launch,
    const WindowAttentionParams& params,
    const WindowAttentionGradients& gradients,
    const BackwardWorkspace& workspace) {
  const int64_t queries = params.batch * params.heads * params.query_length;
  return launch_blocks(
      launch,
      window_attention_delta_kernel<scalar_t>,
      ceil_divide(queries, kRowWarps),
      kRowWarps,
      size_t{0},
      params,
      gradients,
      static_cast<acc_t<scalar_t>*>(workspace.delta),
      queries);
}

template <typename scalar_t, typename Launcher>
int launch_sum(
    Launcher&& launch,
    const void* parts,
    void* result,
    int64_t count,
    int64_t size) {
  return launch_blocks(
      launch,
      window_attention_sum_kernel<scalar_t>,
      ceil_divide(size, kSumThreads),
      kSumThreads / kWarpSize,
      size_t{0},
      static_cast<const acc_t<scalar_t>*>(parts),
      static_cast<scalar_t*>(result),
      count,
      size);
}

template <typename scalar_t, typename Launcher>
int launch_key_bias(
    Launcher&& launch,
    const WindowAttentionParams& params,
    const WindowAttentionGradients& gradients,
    const BackwardWorkspace& workspace) {
  return launch_blocks(
      launch,
      window_attention_key_bias_kernel<scalar_t>,
      ceil_divide(params.batch * params.key_length, kSumThreads),
      kSumThreads / kWarpSize,
      size_t{0},
      params,
      static_cast<const acc_t<scalar_t>*>(workspace.key_bias),
      static_cast<scalar_t*>(gradients.grad_key_bias));
}

// All that is wanted, in one order on one stream.
template <typename scalar_t, typename Launcher>
int launch_backward(
    Launcher&& launch,
    const WindowAttentionParams& params,
    const WindowAttentionGradients& gradients,
    void* memory) {
  const BackwardWorkspace workspace =
      backward_workspace(params, gradients, sizeof(acc_t<scalar_t>), memory);
  int error = 0;
  const auto run = [&](bool wanted, const auto& step) {
    if (wanted && error == 0) {
      error = step();
    }
  };
  const auto keys = [&](bool wanted, bool summaries, bool values) {
    run(wanted, [&] {
      return launch_backward_keys<scalar_t>(
          launch, params, gradients, workspace, KeyWork{summaries, values});
    });
  };
  // A table for one head or for all: the heads are parts where it is for one.
  const auto table = [&](const void* parts,
                         void* gradient,
                         int64_t head_stride,
                         int64_t size) {
    run(gradient != nullptr, [&] {
      const int64_t tables = head_stride == 0 ? 1 : params.heads;
      const int64_t count = params.batch * workspace.table_segments;
      return launch_sum<scalar_t>(
          launch,
          parts,
          gradient,
          count * params.heads / tables,
          tables * size);
    });
  };
  const auto summaries = [&](const void* parts, void* gradient, int64_t depth) {
    run(gradient != nullptr, [&] {
      return launch_sum<scalar_t>(
          launch,
          parts,
          gradient,
          workspace.summary_segments,
          params.rows * params.key_heads * params.summaries * depth);
    });
  };
  const bool any_table = gradients.grad_bias != nullptr ||
      gradients.grad_relative_key != nullptr ||
      gradients.grad_summary_relative_key != nullptr;
  run(true, [&] {
    return launch_delta<scalar_t>(launch, params, gradients, workspace);
  });
  run(workspace.hulls != nullptr,
      [&] { return launch_hulls<scalar_t>(launch, params, workspace); });
  run(gradients.grad_query != nullptr, [&] {
    return launch_backward_query<scalar_t>(
        launch, params, gradients, workspace);
  });
  run(any_table, [&] {
    return launch_backward_tables<scalar_t>(
        launch, params, gradients, workspace);
  });
  keys(
      gradients.grad_key != nullptr || gradients.grad_key_bias != nullptr,
      false,
      false);
  keys(gradients.grad_value != nullptr, false, true);
  keys(gradients.grad_summary_key != nullptr, true, false);
  keys(gradients.grad_summary_value != nullptr, true, true);
  run(gradients.grad_key_bias != nullptr, [&] {
    return launch_key_bias<scalar_t>(launch, params, gradients, workspace);
  });
  summaries(workspace.summary_key, gradients.grad_summary_key, params.head_dim);
  summaries(
      workspace.summary_value, gradients.grad_summary_value, params.value_dim);
  const int64_t slots = window_slots(params.window);
  table(
      workspace.bias,
      gradients.grad_bias,
      params.bias_head_stride,
      params.window.block * slots);
  table(
      workspace.relative_key,
      gradients.grad_relative_key,
      params.relative_key_head_stride,
      slots * params.head_dim);
  table(
      workspace.summary_relative_key,
      gradients.grad_summary_relative_key,
      params.summary_relative_key_head_stride,
      params.summary_relative_keys * params.head_dim);
  return error;
}

// D, M <= 256, which the glue checks.
template <typename Launcher>
int dispatch_window_attention_backward(
    Launcher&& launch,
    const WindowAttentionParams& params,
    const WindowAttentionGradients& gradients,
    void* workspace,
    ScalarKind kind) {
  switch (kind) {
    case ScalarKind::kDouble:
      return launch_backward<double>(launch, params, gradients, workspace);
    case ScalarKind::kFloat:
      return launch_backward<float>(launch, params, gradients, workspace);
    case ScalarKind::kBFloat16:
      return launch_backward<__nv_bfloat16>(
          launch, params, gradients, workspace);
    case ScalarKind::kHalf:
      return launch_backward<__half>(launch, params, gradients, workspace);
  }
  return kInvalidConfiguration;
}

} // namespace subquad::cuda
