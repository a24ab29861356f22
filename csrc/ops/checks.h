#pragma once

#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>

// Argument checks with one wording for every operator:
// "<op>: <rule>, got <actual>".
namespace subquad {

inline void check_rank(
    const char* op,
    const char* name,
    const at::Tensor& tensor,
    int64_t rank,
    const char* layout) {
  TORCH_CHECK_VALUE(
      tensor.dim() == rank,
      op,
      ": ",
      name,
      " must be ",
      layout,
      ", got ",
      tensor.dim(),
      " dimensions");
}

inline void check_size(
    const char* op,
    const char* name,
    const at::Tensor& tensor,
    int64_t axis,
    const c10::SymInt& expected,
    const char* meaning) {
  TORCH_CHECK_VALUE(
      tensor.sym_size(axis) == expected,
      op,
      ": axis ",
      axis,
      " of ",
      name,
      " must be ",
      meaning,
      " = ",
      expected,
      ", got ",
      tensor.sym_size(axis));
}

// `like`, called `like_name`, is the operator's first tensor.
inline void check_same_dtype(
    const char* op,
    const char* name,
    const at::Tensor& tensor,
    const at::Tensor& like,
    const char* like_name = "query") {
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == like.scalar_type(),
      op,
      ": ",
      name,
      " must have the dtype of ",
      like_name,
      ", ",
      like.scalar_type(),
      ", got ",
      tensor.scalar_type());
}

// What sums of `like`'s dtype are kept in.
inline void check_accumulation_dtype(
    const char* op,
    const char* name,
    const at::Tensor& tensor,
    const at::Tensor& like,
    const char* like_name = "query") {
  const at::ScalarType dtype = at::toOpMathType(like.scalar_type());
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == dtype,
      op,
      ": ",
      name,
      " must be ",
      dtype,
      " where ",
      like_name,
      " is ",
      like.scalar_type(),
      ", got ",
      tensor.scalar_type());
}

inline void
check_index_dtype(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == at::kLong,
      op,
      ": ",
      name,
      " must be int64, got ",
      tensor.scalar_type());
}

inline void check_same_device(
    const char* op,
    const char* name,
    const at::Tensor& tensor,
    const at::Tensor& like,
    const char* like_name = "query") {
  TORCH_CHECK_VALUE(
      tensor.device() == like.device(),
      op,
      ": ",
      name,
      " must be on the device of ",
      like_name,
      ", ",
      like.device(),
      ", got ",
      tensor.device());
}

inline void check_dense_last_axis(
    const char* op,
    const char* name,
    const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(
      tensor.sym_size(-1) <= 1 || tensor.sym_stride(-1) == 1,
      op,
      ": the last axis of ",
      name,
      " must be dense (stride 1), got stride ",
      tensor.sym_stride(-1));
}

inline void check_head_groups(
    const char* op,
    const at::Tensor& query,
    const at::Tensor& key) {
  TORCH_CHECK_VALUE(
      key.sym_size(1) > 0 && query.sym_size(1) % key.sym_size(1) == 0,
      op,
      ": the heads of query must be a multiple of those of key, got ",
      query.sym_size(1),
      " and ",
      key.sym_size(1));
}

inline void check_positive_widths(
    const char* op,
    const at::Tensor& query,
    const at::Tensor& value) {
  TORCH_CHECK_VALUE(
      query.sym_size(3) > 0 && value.sym_size(3) > 0,
      op,
      ": D and M must be positive, got ",
      query.sym_size(3),
      " and ",
      value.sym_size(3));
}

inline void check_floating_point(
    const char* op,
    const char* name,
    const at::Tensor& tensor) {
  const at::ScalarType dtype = tensor.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kDouble || dtype == at::kFloat || dtype == at::kBFloat16 ||
          dtype == at::kHalf,
      op,
      ": ",
      name,
      " must be float64, float32, bfloat16 or float16, got ",
      dtype);
}

// The log-sum-exp [B, H, L] that belongs to `tensor`, [B, H, L, D].
inline void check_lse(
    const char* op,
    const char* name,
    const at::Tensor& lse,
    const char* tensor_name,
    const at::Tensor& tensor) {
  check_rank(op, name, lse, 3, "[B, H, L]");
  const at::ScalarType dtype = at::toOpMathType(tensor.scalar_type());
  TORCH_CHECK_TYPE(
      lse.scalar_type() == dtype,
      op,
      ": ",
      name,
      " must be ",
      dtype,
      " where ",
      tensor_name,
      " is ",
      tensor.scalar_type(),
      ", got ",
      lse.scalar_type());
  TORCH_CHECK_VALUE(
      lse.device() == tensor.device(),
      op,
      ": ",
      name,
      " must be on the device of ",
      tensor_name,
      ", ",
      tensor.device(),
      ", got ",
      lse.device());
  check_size(op, name, lse, 0, tensor.sym_size(0), "B");
  check_size(op, name, lse, 1, tensor.sym_size(1), "H");
  check_size(op, name, lse, 2, tensor.sym_size(2), "L");
}

} // namespace subquad
