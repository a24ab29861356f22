#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace subquad {

// The valid tokens of every row of a batch, for CPU kernels that want spans.
// Rows whose tokens lie one after the other are used in place. If some row's
// are scattered (padding between its tokens), kernels get compact copies of
// what is indexed by tokens, and their results are scattered back.
//
// Tensors are [B, N], [B, heads, N] or [B, heads, N, width] with N tokens. CPU
// tensors only: the data decides.
class Rows {
 public:
  // `spans` as from make_spans, `order` [B, N] int64. Refuses spans and tokens
  // outside [0, size) and tokens that come twice in a row. `what` names the
  // tokens in errors: "key" or "query".
  Rows(
      const char* op,
      const char* what,
      const std::optional<at::Tensor>& spans,
      const std::optional<at::Tensor>& order,
      int64_t size);

  // The (start, length) table [R, 2] for kernels.
  const std::optional<at::Tensor>& spans() const {
    return spans_;
  }

  bool scattered() const {
    return scattered_;
  }

  // The tensor itself, or a compact copy whose rows are the spans.
  at::Tensor gather(const at::Tensor& tensor) const;
  std::optional<at::Tensor> gather(
      const std::optional<at::Tensor>& tensor) const;

  // Where a kernel writes what belongs into `result`: `result` itself, or a
  // fresh compact tensor for scatter().
  at::Tensor workspace(const at::Tensor& result) const;

  // Brings the workspace of `result` back to it; `fill` is for all tokens
  // outside the rows. Without scattered rows there is nothing to do.
  void scatter(
      const at::Tensor& workspace,
      const at::Tensor& result,
      double fill = 0.0) const;

 private:
  void copy(const at::Tensor& from, const at::Tensor& to, bool gather) const;

  std::optional<at::Tensor> spans_;
  std::optional<at::Tensor> order_; // dense
  bool scattered_ = false;
};

} // namespace subquad
