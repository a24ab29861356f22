#pragma once

#include "ops/linear_attention/kernel_product.cuh"
#include "ops/linear_attention/kernel_sums.cuh"

// Backward of linear attention. With A_ij the weights of seen pairs, decays and
// scale included, D_i the bounded denominator, r_i = 1 / D_i and
// delta_i = -dO_i . O_i where the denominator has a gradient, else 0:
//
//   dA_ij  = r_i (dO_i . v_j + delta_i)
//   dphi_q = sum_j dA_ij decay_ij scale phi_k,  dphi_k = the same of phi_q
//   dV_j   = sum_i A_ij r_i dO_i
//
// Of the pairs in different chunks the states know the sums: those of keys
// before a chunk, as in forward, and those of phi_q^T (r dO) behind it, which
// are the gradients of the states. The gradients of features are stored and go
// through the maps at last. Every number is the sum of one thread: no atomics.
namespace subquad::cuda {

// Grid: one warp per query of every head. Writes (r, delta).
template <typename scalar_t>
__global__ void __launch_bounds__(kRowWarps* kWarpSize)
    linear_attention_terms_kernel(
        LinearAttentionParams params,
        LinearAttentionGradients gradients,
        acc_t<scalar_t>* terms) { // [B, H, L, 2]
  using acc = acc_t<scalar_t>;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRowWarps +
      static_cast<int>(threadIdx.x) / kWarpSize;
  if (i >= params.batch * params.heads * params.query_length) {
    return;
  }
  acc inverse = 1;
  acc delta = 0;
  if (params.normalize) {
    const int64_t token = i % params.query_length;
    const int64_t head = i / params.query_length % params.heads;
    const int64_t batch = i / params.query_length / params.heads;
    const scalar_t* output = vector_row<scalar_t>(
        params.output, params.output_stride, batch, head, token);
    const scalar_t* grad_output = vector_row<scalar_t>(
        gradients.grad_output,
        gradients.grad_output_stride,
        batch,
        head,
        token);
    for (int64_t m = lane_index(); m < params.value_dim; m += kWarpSize) {
      delta -= to_acc(grad_output[m]) * to_acc(output[m]);
    }
    delta = sum_lanes(delta);
    const acc floor = static_cast<acc>(params.floor);
    const acc sum = static_cast<const acc*>(params.denominator)[i];
    const acc bounded = sum < floor ? floor : sum;
    inverse = bounded == acc(0) ? acc(0) : acc(1) / bounded;
    if (!(sum >= floor)) {
      delta = 0;
    }
  }
  if (lane_index() == 0) {
    terms[2 * i] = inverse;
    terms[2 * i + 1] = delta;
  }
}

// Sum over a block in one order, for all its threads.
template <int kWarps, typename acc>
__device__ __forceinline__ acc block_sum(acc value, acc* parts) {
  value = sum_lanes(value);
  __syncthreads();
  if (lane_index() == 0) {
    parts[threadIdx.x / kWarpSize] = value;
  }
  __syncthreads();
  acc sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) {
    sum += parts[warp];
  }
  return sum;
}

constexpr int kLastWarps = 8;

// Grid: rows x key heads. What the log scales get beside phi_k . dphi_k and
// phi_q . dphi_q: the state before the row S . dS, and the last token, in whose
// units the new state is, the gradient of the new log scale less S . dS of the
// new state. Without tokens the new log scale is the old one. Shared: a number
// for each warp.
template <typename acc>
__global__ void __launch_bounds__(kLastWarps* kWarpSize)
    linear_attention_last_terms_kernel(
        LinearAttentionParams params,
        LinearAttentionGradients gradients,
        LinearAttentionLayout layout) {
  SUBQUAD_SHARED(shared);
  acc* parts = reinterpret_cast<acc*>(shared); // [kLastWarps]
  const int64_t lane = static_cast<int64_t>(blockIdx.x);
  const RowOfTokens row = row_of_tokens(layout.axis, lane / params.key_heads);
  const int64_t size = state_elements(params);
  const acc* totals =
      static_cast<const acc*>(layout.workspace.total_gradients) + lane * size;
  acc before = 0;
  acc after = 0;
  for (int64_t i = static_cast<int>(threadIdx.x); i < size;
       i += kLastWarps * kWarpSize) {
    before += totals[i] *
        state_element<acc>(params.state_kv, params.state_k, params, lane, i);
    after += state_element<acc>(
                 gradients.grad_new_state_kv,
                 gradients.grad_new_state_k,
                 params,
                 lane,
                 i) *
        state_element<acc>(
                 params.new_state_kv, params.new_state_k, params, lane, i);
  }
  before = block_sum<kLastWarps>(before, parts);
  after = block_sum<kLastWarps>(after, parts);
  if (threadIdx.x != 0) {
    return;
  }
  const acc given = gradients.grad_new_state_log_scale == nullptr
      ? acc(0)
      : static_cast<const acc*>(gradients.grad_new_state_log_scale)[lane];
  const bool empty = row.chunks == 0;
  if (layout.workspace.last_terms != nullptr) {
    static_cast<acc*>(layout.workspace.last_terms)[lane] = given - after;
  }
  if (gradients.grad_state_log_scale != nullptr) {
    static_cast<acc*>(gradients.grad_state_log_scale)[lane] =
        empty ? given : before;
  }
}

// Grid: places of chunks x heads, places fastest. A warp goes through tokens of
// the chunk: from the gradients of features to those of queries or keys, and of
// log scales.
template <typename scalar_t, bool kOfQueries>
__global__ void __launch_bounds__(kRowWarps* kWarpSize, 4)
    linear_attention_map_kernel(
        LinearAttentionParams params,
        LinearAttentionGradients gradients,
        LinearAttentionLayout layout) {
  using acc = acc_t<scalar_t>;
  const int64_t place = static_cast<int64_t>(blockIdx.x) % layout.places;
  const int64_t head = static_cast<int64_t>(blockIdx.x) / layout.places;
  const Chunk chunk = chunk_at(layout.axis, place);
  const int64_t batch = chunk.row.batch;
  const FeatureSource& source = kOfQueries ? layout.queries : layout.keys;
  const int64_t heads = kOfQueries ? params.heads : params.key_heads;
  const int64_t length = kOfQueries ? params.query_length : params.key_length;
  void* result = kOfQueries ? gradients.grad_query : gradients.grad_key;
  const Strides stride =
      kOfQueries ? gradients.grad_query_stride : gradients.grad_key_stride;
  const acc* products = static_cast<const acc*>(layout.workspace.products);
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x) / kWarpSize; row < chunk.count;
       row += kRowWarps) {
    const int64_t token = token_of(layout.axis, chunk.row, chunk.begin + row);
    const int64_t line = (batch * heads + head) * length + token;
    const scalar_t* x = token_row<scalar_t>(source, batch, head, token);
    const acc* weights = token_weights<acc>(source, batch, token);
    const acc* gradient = static_cast<const acc*>(
                              kOfQueries ? layout.workspace.query_features
                                         : layout.workspace.key_features) +
        line * source.features;
    SoftmaxTerms<acc> softmax{0, 0};
    if (source.rule.map == FeatureMap::kSoftmax) {
      softmax = softmax_terms(x, source.width);
    }
    if (result != nullptr) {
      token_gradient(
          source,
          x,
          weights,
          softmax,
          gradient,
          const_cast<scalar_t*>(
              vector_row<scalar_t>(result, stride, batch, head, token)));
    }
    if (products == nullptr) {
      continue;
    }
    acc product = 0;
    for (int f = lane_index(); f < source.features; f += kWarpSize) {
      product += token_feature(source, x, weights, softmax, f) * gradient[f];
    }
    product = sum_lanes(product);
    if (lane_index() != 0) {
      continue;
    }
    if constexpr (kOfQueries) {
      static_cast<acc*>(layout.workspace.products)[line] = product;
    } else {
      const int64_t group = params.heads / heads;
      for (int64_t member = 0; member < group; ++member) {
        product -= products
            [(batch * params.heads + head * group + member) * length + token];
      }
      if (chunk.begin + row == chunk.row.span.length - 1) {
        product += static_cast<const acc*>(
            layout.workspace.last_terms)[chunk.row.row * heads + head];
      }
      static_cast<acc*>(gradients.grad_key_log_scale)[line] = product;
    }
  }
}

template <typename scalar_t, bool kOfQueries, typename Launcher>
int launch_map(
    Launcher&& launch,
    const LinearAttentionParams& params,
    const LinearAttentionGradients& gradients,
    const LinearAttentionLayout& layout) {
  return launch_linear_attention(
      launch,
      linear_attention_map_kernel<scalar_t, kOfQueries>,
      layout.places * (kOfQueries ? params.heads : params.key_heads),
      kRowWarps,
      size_t{0},
      params,
      gradients,
      layout);
}

// All that is wanted, in one order on one stream.
template <typename scalar_t, typename Launcher>
int launch_backward(
    Launcher&& launch,
    const LinearAttentionParams& params,
    const LinearAttentionGradients& gradients,
    void* memory) {
  using acc = acc_t<scalar_t>;
  const LinearAttentionWorkspace workspace =
      linear_attention_workspace(params, &gradients, sizeof(scalar_t), memory);
  const auto layout = [&](const TokenAxis& axis) {
    return linear_attention_layout<scalar_t>(
        params, gradients, workspace, axis);
  };
  const LinearAttentionLayout query_sums =
      layout(query_axis(params, ChunksOf::kSums, sizeof(scalar_t)));
  const LinearAttentionLayout queries =
      layout(query_axis(params, ChunksOf::kTiles, sizeof(scalar_t)));
  const LinearAttentionLayout keys =
      layout(key_axis(params, ChunksOf::kTiles, sizeof(scalar_t)));
  int error = 0;
  const auto run = [&](bool wanted, const auto& step) {
    if (wanted && error == 0) {
      error = step();
    }
  };
  run(true, [&] {
    return launch_linear_attention(
        launch,
        linear_attention_terms_kernel<scalar_t>,
        ceil_divide(
            params.batch * params.heads * params.query_length, kRowWarps),
        kRowWarps,
        size_t{0},
        params,
        gradients,
        static_cast<acc*>(workspace.query_terms));
  });
  run(params.causal,
      [&] { return launch_states<scalar_t>(launch, params, keys, false); });
  run(true, [&] {
    return launch_sums<scalar_t, Sums::kGradient>(
        launch, params, gradients, query_sums);
  });
  run(true, [&] {
    return launch_linear_attention(
        launch,
        linear_attention_reverse_scan_kernel<acc>,
        scan_blocks(params),
        kScanThreads / kWarpSize,
        size_t{0},
        params,
        gradients,
        query_sums);
  });
  const bool log_scales = gradients.grad_key_log_scale != nullptr ||
      gradients.grad_state_log_scale != nullptr;
  run(log_scales, [&] {
    return launch_linear_attention(
        launch,
        linear_attention_last_terms_kernel<acc>,
        params.rows * params.key_heads,
        kLastWarps,
        kLastWarps * sizeof(acc),
        params,
        gradients,
        keys);
  });
  const StateSource before = query_states<scalar_t>(params, workspace);
  const StateSource behind = workspace_states<scalar_t>(
      params,
      params.causal ? workspace.state_gradients : workspace.total_gradients,
      !params.causal);
  run(gradients.grad_value != nullptr, [&] {
    return launch_product<scalar_t, Product::kGradValue>(
        launch, params, gradients, keys, behind);
  });
  run(workspace.query_features != nullptr, [&] {
    return launch_product<scalar_t, Product::kGradQuery>(
        launch, params, gradients, queries, before);
  });
  run(workspace.query_features != nullptr, [&] {
    return launch_map<scalar_t, true>(launch, params, gradients, queries);
  });
  run(workspace.key_features != nullptr, [&] {
    return launch_product<scalar_t, Product::kGradKey>(
        launch, params, gradients, keys, behind);
  });
  run(workspace.key_features != nullptr, [&] {
    return launch_map<scalar_t, false>(launch, params, gradients, keys);
  });
  return error;
}

template <typename Launcher>
int dispatch_linear_attention_backward(
    Launcher&& launch,
    const LinearAttentionParams& params,
    const LinearAttentionGradients& gradients,
    void* workspace,
    ScalarKind kind) {
  return dispatch_scalar(kind, [&]<typename scalar_t>() {
    return launch_backward<scalar_t>(launch, params, gradients, workspace);
  });
}

} // namespace subquad::cuda
