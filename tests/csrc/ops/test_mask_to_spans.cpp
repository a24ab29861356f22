#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <utility>

#include "api/subquad.h"

namespace {

std::pair<at::Tensor, at::Tensor> mask_to_spans(const at::Tensor& mask) {
  const auto rows = subquad::call("mask_to_spans", {mask});
  return {rows.at(0).toTensor(), rows.at(1).toTensor()};
}

TEST(MaskToSpans, OrdersValidTokensBeforePaddedOnes) {
  const auto mask = at::tensor({0, 1, 0, 1, 1, 0}, at::kInt).view({2, 3});
  const auto [lengths, order] = mask_to_spans(mask);
  EXPECT_TRUE(at::equal(lengths, at::tensor({2, 1}, at::kLong)));
  EXPECT_TRUE(
      at::equal(order, at::tensor({0, 2, 1, 2, 0, 1}, at::kLong).view({2, 3})));
}

TEST(MaskToSpans, EveryRowIsAPermutation) {
  at::manual_seed(0);
  const auto mask = at::rand({7, 1001}) < 0.5;
  const auto [lengths, order] = mask_to_spans(mask);
  EXPECT_TRUE(at::equal(lengths, mask.logical_not().sum(1)));
  const auto sorted = std::get<0>(order.sort(1));
  EXPECT_TRUE(at::equal(sorted, at::arange(1001).expand({7, 1001})));
  // Along the order there is no valid token after a padded one.
  const auto ordered = mask.gather(1, order).to(at::kInt);
  EXPECT_TRUE((ordered.diff(1, 1) >= 0).all().item<bool>());
}

TEST(MaskToSpans, RowsOfAttentionAreTheValidTokensAlone) {
  at::manual_seed(1);
  const auto x = at::randn({1, 2, 6, 4}, at::kDouble);
  const auto mask = at::tensor({0, 1, 0, 0, 1, 0}, at::kInt).view({1, 6});
  const auto [lengths, order] = mask_to_spans(mask);
  const auto padded = subquad::call(
                          "window_attention",
                          {x, x, x},
                          {{"block", 1},
                           {"left", 1},
                           {"right", 1},
                           {"lengths", lengths},
                           {"order", order},
                           {"query_lengths", lengths},
                           {"query_order", order}})
                          .at(0)
                          .toTensor();
  const auto valid = order.flatten().narrow(0, 0, 4);
  const auto alone = x.index_select(2, valid);
  const auto expected = subquad::call(
                            "window_attention",
                            {alone, alone, alone},
                            {{"block", 1}, {"left", 1}, {"right", 1}})
                            .at(0)
                            .toTensor();
  EXPECT_TRUE(at::allclose(padded.index_select(2, valid), expected));
  const auto rest = order.flatten().narrow(0, 4, 2);
  EXPECT_TRUE((padded.index_select(2, rest) == 0).all().item<bool>());
}

TEST(MaskToSpans, RefusesOtherRanks) {
  try {
    mask_to_spans(at::zeros({3}));
    FAIL() << "a vector was accepted";
  } catch (const c10::ValueError& error) {
    EXPECT_STREQ(
        error.what_without_backtrace(),
        "mask_to_spans: mask must be [B, S], got 1 dimensions");
  }
}

} // namespace
