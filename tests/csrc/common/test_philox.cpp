#include <gtest/gtest.h>

#include "common/philox.h"

namespace subquad {
namespace {

// Known answers of Philox4x32-10 published with the Random123 library.
TEST(Philox, KnownAnswers) {
  const PhiloxWords zero = philox(0, 0, 0);
  EXPECT_EQ(zero.word[0], 0x6627e8d5u);
  EXPECT_EQ(zero.word[1], 0xe169c58du);
  EXPECT_EQ(zero.word[2], 0xbc57ac4cu);
  EXPECT_EQ(zero.word[3], 0x9b00dbd8u);
  const PhiloxWords ones = philox(~0ull, ~0ull, ~0ull);
  EXPECT_EQ(ones.word[0], 0x408f276du);
  EXPECT_EQ(ones.word[1], 0x41c83b0eu);
  EXPECT_EQ(ones.word[2], 0xa20bc7c6u);
  EXPECT_EQ(ones.word[3], 0x6d5451fdu);
}

TEST(Dropout, KeepsAboutTheRightShare) {
  const Dropout dropout{0.25, 7, 3};
  int64_t kept = 0;
  constexpr int64_t kDraws = 100000;
  for (int64_t i = 0; i < kDraws; ++i) {
    kept += dropout.keep(i) ? 1 : 0;
  }
  EXPECT_NEAR(static_cast<double>(kept) / kDraws, 0.75, 0.01);
}

TEST(Dropout, ZeroProbabilityKeepsAll) {
  const Dropout dropout{0.0, 1, 2};
  for (int64_t i = 0; i < 1000; ++i) {
    EXPECT_TRUE(dropout.keep(i));
  }
}

} // namespace
} // namespace subquad
