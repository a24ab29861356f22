#include "cuda/context.h"
#include "cuda/registration.h"
#include "ops/mask_to_spans/cuda_kernel.h"
#include "ops/mask_to_spans/mask_to_spans.h"

namespace subquad {

namespace {

std::tuple<at::Tensor, at::Tensor> mask_to_spans_cuda(const at::Tensor& given) {
  const cuda::DeviceGuard guard(given);
  check_mask_to_spans(given);
  const at::Tensor mask = given.contiguous();
  auto [lengths, order] = empty_mask_to_spans_outputs(mask);
  MaskToSpansParams params{};
  params.rows = mask.size(0);
  params.size = mask.size(1);
  params.mask = mask.const_data_ptr();
  params.element_size = mask.element_size();
  params.significant = ~uint64_t{0};
  if (mask.is_floating_point()) {
    params.significant >>= 64 - (8 * params.element_size - 1);
  }
  params.lengths = lengths.mutable_data_ptr<int64_t>();
  params.order = order.mutable_data_ptr<int64_t>();
  if (params.rows > 0) {
    cuda::check(launch_mask_to_spans(params, cuda::current_stream()));
  }
  return {lengths, order};
}

SUBQUAD_CUDA_IMPL(m) {
  m.impl("mask_to_spans", &mask_to_spans_cuda);
}

} // namespace

} // namespace subquad
