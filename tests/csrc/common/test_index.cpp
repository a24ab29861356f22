#include <gtest/gtest.h>

#include "common/index.h"

namespace subquad {
namespace {

int64_t reference_block(int64_t position, int64_t block) {
  int64_t begin = -64 * block;
  while (begin + block <= position) {
    begin += block;
  }
  return begin;
}

bool reference_sees(
    int64_t position,
    int64_t key,
    const WindowRule& rule,
    int64_t length) {
  const int64_t begin = reference_block(position, rule.block);
  return key >= 0 && key < length && key >= begin - rule.left &&
      key < begin + rule.block + rule.right &&
      (!rule.causal || key <= position);
}

TEST(FloorDivide, RoundsTowardsMinusInfinity) {
  for (int64_t a = -40; a <= 40; ++a) {
    for (int64_t b = 1; b <= 9; ++b) {
      const int64_t quotient = floor_divide(a, b);
      EXPECT_LE(quotient * b, a);
      EXPECT_GT((quotient + 1) * b, a);
    }
  }
}

TEST(WindowKeys, EqualsTheDefinitionForEverySmallWindow) {
  for (int64_t block = 1; block <= 5; ++block) {
    for (int64_t left = 0; left <= 5; ++left) {
      for (int64_t right = 0; right <= 5; ++right) {
        for (const bool causal : {false, true}) {
          const WindowRule rule{block, left, right, causal};
          for (int64_t length = 0; length <= 9; ++length) {
            for (int64_t position = -12; position <= 21; ++position) {
              const Range range = window_keys(position, rule, length);
              ASSERT_GE(range.begin, 0);
              ASSERT_LE(range.begin, range.end);
              ASSERT_LE(range.end, length);
              for (int64_t key = -3; key <= 12; ++key) {
                ASSERT_EQ(
                    key >= range.begin && key < range.end,
                    reference_sees(position, key, rule, length))
                    << "block " << block << " left " << left << " right "
                    << right << " causal " << causal << " length " << length
                    << " position " << position << " key " << key;
              }
            }
          }
        }
      }
    }
  }
}

TEST(WindowQueries, EqualsTheDefinitionForEverySmallWindow) {
  for (int64_t block = 1; block <= 5; ++block) {
    for (int64_t left = 0; left <= 6; ++left) {
      for (int64_t right = 0; right <= 6; ++right) {
        for (const bool causal : {false, true}) {
          const WindowRule rule{block, left, right, causal};
          for (int64_t key = 0; key <= 12; ++key) {
            const Range range = window_queries(key, rule);
            ASSERT_LT(range.begin, range.end);
            for (int64_t position = -20; position <= 40; ++position) {
              ASSERT_EQ(
                  position >= range.begin && position < range.end,
                  reference_sees(position, key, rule, 13))
                  << "block " << block << " left " << left << " right " << right
                  << " causal " << causal << " position " << position << " key "
                  << key;
            }
          }
        }
      }
    }
  }
}

TEST(WindowKeys, SlotsCoverExactlyTheWindow) {
  for (int64_t block = 1; block <= 4; ++block) {
    for (int64_t left = 0; left <= 3; ++left) {
      for (int64_t right = 0; right <= 3; ++right) {
        const WindowRule rule{block, left, right, false};
        for (int64_t position = 0; position <= 20; ++position) {
          const int64_t origin = window_origin(position, rule);
          const Range range = window_keys(position, rule, 1000);
          EXPECT_EQ(range.begin, max_index(origin, 0));
          EXPECT_EQ(range.end, origin + window_slots(rule));
        }
      }
    }
  }
}

TEST(WindowKeys, RangesOfIncreasingPositionsNeverMoveBack) {
  for (int64_t block = 1; block <= 4; ++block) {
    for (const bool causal : {false, true}) {
      const WindowRule rule{block, 2, 1, causal};
      Range previous = window_keys(-9, rule, 17);
      for (int64_t position = -8; position <= 25; ++position) {
        const Range range = window_keys(position, rule, 17);
        if (!range.empty() && !previous.empty()) {
          EXPECT_GE(range.begin, previous.begin);
        }
        EXPECT_GE(range.end, previous.end);
        previous = range;
      }
    }
  }
}

TEST(WindowKeys, WorksBeyondInt32) {
  const int64_t position = (int64_t{1} << 33) + 5;
  const WindowRule rule{4, 8, 2, false};
  const Range range = window_keys(position, rule, int64_t{1} << 34);
  EXPECT_EQ(range.begin, (int64_t{1} << 33) + 4 - 8);
  EXPECT_EQ(range.end, (int64_t{1} << 33) + 4 + 4 + 2);
}

TEST(SummaryLimit, EqualsTheDefinition) {
  for (int64_t offset = -2; offset <= 3; ++offset) {
    for (int64_t block = 1; block <= 4; ++block) {
      for (int64_t per_block = 0; per_block <= 3; ++per_block) {
        for (int64_t count = 0; count <= 7; ++count) {
          int64_t previous = 0;
          for (int64_t position = -9; position <= 20; ++position) {
            const int64_t limit =
                summary_limit(position, {offset, block, per_block}, count);
            const int64_t index = reference_block(position, block) / block;
            int64_t expected = offset + index * per_block;
            expected = expected < 0 ? 0 : (expected > count ? count : expected);
            EXPECT_EQ(limit, expected);
            EXPECT_GE(limit, previous);
            previous = limit;
          }
        }
      }
    }
  }
}

TEST(SummaryLimit, ZeroBlockShowsAll) {
  EXPECT_EQ(summary_limit(-5, {0, 0, 1}, 7), 7);
  EXPECT_EQ(summary_limit(100, {3, 0, 1}, 0), 0);
}

TEST(FirstSummaryQuery, EqualsTheLimitForEverySmallRule) {
  for (int64_t offset = -4; offset <= 4; ++offset) {
    for (int64_t block = 0; block <= 4; ++block) {
      for (int64_t per_block = 0; per_block <= 3; ++per_block) {
        const SummaryRule rule{offset, block, per_block};
        for (int64_t index = 0; index <= 9; ++index) {
          const int64_t first = first_summary_query(index, rule);
          for (int64_t position = -30; position <= 60; ++position) {
            const bool seen = summary_limit(position, rule, 10) > index;
            ASSERT_TRUE(position >= first || !seen);
            if (block > 0 && per_block > 0) {
              ASSERT_EQ(position >= first, seen)
                  << "offset " << offset << " block " << block << " per block "
                  << per_block << " index " << index << " position "
                  << position;
            }
          }
        }
      }
    }
  }
}

} // namespace
} // namespace subquad
