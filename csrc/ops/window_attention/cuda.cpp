#include <limits>

#include "cuda/context.h"
#include "cuda/dtype.h"
#include "cuda/registration.h"
#include "ops/layout.h"
#include "ops/window_attention/arguments.h"
#include "ops/window_attention/cuda_kernel.h"

namespace subquad {

namespace {

// What a tile of queries and of keys has room for.
constexpr int64_t kMaxHeadDim = 256;

std::tuple<at::Tensor, at::Tensor> forward_cuda(
    const WindowAttentionInputs& given,
    const WindowAttentionOptions& given_options) {
  const cuda::DeviceGuard guard(given.query);
  check_window_attention(given, given_options);
  TORCH_CHECK_NOT_IMPLEMENTED(
      given.query.size(3) <= kMaxHeadDim,
      "window_attention: the head dimension D is at most ",
      kMaxHeadDim,
      " on CUDA, got ",
      given.query.size(3));
  WindowAttentionInputs inputs = given;
  WindowAttentionOptions options = given_options;
  make_tables_dense(inputs, options);
  auto [output, lse] = empty_window_attention_outputs(inputs);
  // With an order nobody else writes the queries outside every row.
  if (options.query_order.has_value()) {
    output.zero_();
    lse.fill_(-std::numeric_limits<double>::infinity());
  }
  if (output.numel() > 0) {
    WindowAttentionParams params = make_params(inputs, options);
    params.output = output.mutable_data_ptr();
    params.output_stride = strides_of(output);
    params.logsumexp = lse.mutable_data_ptr();
    cuda::check(launch_window_attention_forward(
        params, cuda::scalar_kind(output), cuda::current_stream()));
  }
  return {output, lse};
}

SUBQUAD_CUDA_IMPL(m) {
  m.impl(
      "_window_attention_forward", WindowAttentionForward<&forward_cuda>::call);
}

} // namespace

} // namespace subquad
