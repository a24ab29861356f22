#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

// Tensors that an operator may be called without.
namespace subquad {

using OptionalTensor = std::optional<at::Tensor>;

inline const void* data_or_null(const OptionalTensor& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

inline const int64_t* indices_or_null(const OptionalTensor& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr<int64_t>() : nullptr;
}

inline OptionalTensor dense(const OptionalTensor& tensor) {
  return tensor.has_value() ? OptionalTensor(tensor->contiguous())
                            : std::nullopt;
}

// Kernels read rows of [B, H, L, D] through the strides of the first three
// axes.
inline at::Tensor dense_last_axis(const at::Tensor& tensor) {
  return tensor.size(3) > 1 && tensor.stride(3) != 1 ? tensor.contiguous()
                                                     : tensor;
}

// Autograd writes "absent" as an undefined tensor.
inline OptionalTensor defined(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

} // namespace subquad
