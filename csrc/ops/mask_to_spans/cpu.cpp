#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "common/index.h"
#include "ops/mask_to_spans/mask_to_spans.h"

namespace subquad {

namespace {

// Returns the number of valid tokens.
template <typename scalar_t>
int64_t order_row(
    const scalar_t* mask, // [S]
    int64_t* order,       // [S]
    int64_t size) {
  int64_t valid = 0;
  for (int64_t j = 0; j < size; ++j) {
    valid += mask[j] == scalar_t(0);
  }
  int64_t next[] = {0, valid}; // of the valid and of the padded tokens
  for (int64_t j = 0; j < size; ++j) {
    order[next[!(mask[j] == scalar_t(0))]++] = j;
  }
  return valid;
}

std::tuple<at::Tensor, at::Tensor> mask_to_spans_cpu(const at::Tensor& given) {
  check_mask_to_spans(given);
  const at::Tensor mask = given.contiguous();
  auto [lengths, order] = empty_mask_to_spans_outputs(mask);
  const int64_t size = mask.size(1);
  int64_t* length = lengths.mutable_data_ptr<int64_t>();
  int64_t* tokens = order.mutable_data_ptr<int64_t>();
  AT_DISPATCH_ALL_TYPES_AND3(
      at::kBool,
      at::kHalf,
      at::kBFloat16,
      mask.scalar_type(),
      "mask_to_spans",
      [&] {
        const scalar_t* data = mask.const_data_ptr<scalar_t>();
        const int64_t grain = ceil_divide(32768, max_index(size, 1)); // rows
        at::parallel_for(
            0, mask.size(0), grain, [&](int64_t begin, int64_t end) {
              for (int64_t row = begin; row < end; ++row) {
                length[row] =
                    order_row(data + row * size, tokens + row * size, size);
              }
            });
      });
  return {lengths, order};
}

TORCH_LIBRARY_IMPL(subquad, CPU, m) {
  m.impl("mask_to_spans", &mask_to_spans_cpu);
}

} // namespace

} // namespace subquad
