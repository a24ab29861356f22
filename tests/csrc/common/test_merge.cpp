#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "common/merge.h"

namespace subquad {
namespace {

template <typename T>
class MergeLse : public testing::Test {};

using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(MergeLse, Types);

TYPED_TEST(MergeLse, IsTheLogarithmOfTheSum) {
  const TypeParam tolerance = 8 * std::numeric_limits<TypeParam>::epsilon();
  for (TypeParam a = -6; a <= 6; a += TypeParam(0.75)) {
    for (TypeParam b = -6; b <= 6; b += TypeParam(0.5)) {
      const Merged<TypeParam> merged = merge_lse(a, b);
      const TypeParam total = std::exp(a) + std::exp(b);
      EXPECT_NEAR(merged.lse, std::log(total), 4 * tolerance);
      EXPECT_NEAR(merged.weight_a, std::exp(a) / total, tolerance);
      EXPECT_NEAR(merged.weight_b, std::exp(b) / total, tolerance);
    }
  }
}

TYPED_TEST(MergeLse, DoesNotOverflow) {
  const TypeParam huge = std::numeric_limits<TypeParam>::max() / 4;
  for (const TypeParam a : {huge, -huge}) {
    const Merged<TypeParam> merged = merge_lse(a, a);
    EXPECT_EQ(merged.weight_a, TypeParam(0.5));
    EXPECT_EQ(merged.weight_b, TypeParam(0.5));
    EXPECT_EQ(merged.lse, a);
  }
  const Merged<TypeParam> far = merge_lse(huge, -huge);
  EXPECT_EQ(far.weight_a, TypeParam(1));
  EXPECT_EQ(far.weight_b, TypeParam(0));
  EXPECT_EQ(far.lse, huge);
}

TYPED_TEST(MergeLse, AnEmptySideHasNoShare) {
  const TypeParam nothing = -std::numeric_limits<TypeParam>::infinity();
  for (const TypeParam lse : {TypeParam(-80), TypeParam(0.3), TypeParam(80)}) {
    const Merged<TypeParam> left = merge_lse(lse, nothing);
    EXPECT_EQ(left.weight_a, TypeParam(1));
    EXPECT_EQ(left.weight_b, TypeParam(0));
    EXPECT_EQ(left.lse, lse);
    const Merged<TypeParam> right = merge_lse(nothing, lse);
    EXPECT_EQ(right.weight_a, TypeParam(0));
    EXPECT_EQ(right.weight_b, TypeParam(1));
    EXPECT_EQ(right.lse, lse);
  }
  const Merged<TypeParam> empty = merge_lse(nothing, nothing);
  EXPECT_EQ(empty.weight_a, TypeParam(0));
  EXPECT_EQ(empty.weight_b, TypeParam(0));
  EXPECT_EQ(empty.lse, nothing);
}

TYPED_TEST(MergeLse, KeepsNaN) {
  const TypeParam nan = std::numeric_limits<TypeParam>::quiet_NaN();
  const TypeParam nothing = -std::numeric_limits<TypeParam>::infinity();
  for (const TypeParam other : {TypeParam(0), nothing, nan}) {
    EXPECT_TRUE(std::isnan(merge_lse(nan, other).lse));
    EXPECT_TRUE(std::isnan(merge_lse(other, nan).lse));
  }
}

TYPED_TEST(MergeLse, DoesNotDependOnTheGrouping) {
  const TypeParam parts[] = {TypeParam(0.5), TypeParam(-3), TypeParam(2)};
  const TypeParam left =
      merge_lse(merge_lse(parts[0], parts[1]).lse, parts[2]).lse;
  const TypeParam right =
      merge_lse(parts[0], merge_lse(parts[1], parts[2]).lse).lse;
  EXPECT_NEAR(left, right, 8 * std::numeric_limits<TypeParam>::epsilon());
}

} // namespace
} // namespace subquad
