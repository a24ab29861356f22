#include "common/window_segments.h"

#include <gtest/gtest.h>

#include <vector>

namespace subquad {
namespace {

WindowAttentionParams
make_params(int64_t queries, int64_t keys, const WindowRule& rule) {
  WindowAttentionParams params{};
  params.batch = params.rows = params.heads = params.key_heads = 1;
  params.query_length = queries;
  params.key_length = keys;
  params.window = rule;
  return params;
}

int64_t batch_of(const WindowAttentionParams& params, int64_t row) {
  return params.packed ? 0 : row;
}

// Segments cover every query of every row once and in order; every key of the
// tensor is finished exactly once; every key that a query sees lies in the
// range of the query's segment; shared keys have places of their own.
void expect_valid(
    const WindowAttentionParams& params,
    int64_t tile,
    int64_t length) {
  const auto segments = plan_window_segments(params, tile, length);
  std::vector<std::vector<int>> finished(
      static_cast<size_t>(params.batch),
      std::vector<int>(static_cast<size_t>(params.key_length)));
  std::vector<int> places;
  std::vector<int64_t> next_query(static_cast<size_t>(params.rows));
  for (size_t i = 0; i < segments.size(); ++i) {
    const WindowSegment& segment = segments[i];
    auto& batch = finished[static_cast<size_t>(batch_of(params, segment.row))];
    const Span queries =
        row_span(params.query_spans, segment.row, params.query_length);
    const Span keys =
        row_span(params.key_spans, segment.row, params.key_length);
    const auto finish = [&](int64_t token) {
      ASSERT_GE(token, 0);
      ASSERT_LT(token, params.key_length);
      ++batch[static_cast<size_t>(token)];
    };
    EXPECT_EQ(
        segment.queries.begin, next_query[static_cast<size_t>(segment.row)]);
    next_query[static_cast<size_t>(segment.row)] = segment.queries.end;
    for (int64_t query = segment.queries.begin; query < segment.queries.end;
         ++query) {
      const Range seen = window_keys(
          query_position(
              params,
              batch_of(params, segment.row),
              queries.start,
              queries.start + query),
          params.window,
          keys.length);
      if (!seen.empty()) {
        EXPECT_LE(segment.keys.begin, seen.begin);
        EXPECT_GE(segment.keys.end, seen.end);
        EXPECT_LE(seen.end - seen.begin, segment.span);
      }
    }
    for (int64_t key = segment.keys.begin; key < segment.keys.end; ++key) {
      if (segment.owns(key)) {
        finish(keys.start + key);
        continue;
      }
      EXPECT_EQ(segment.shared_index(key), static_cast<int64_t>(places.size()));
      places.push_back(0);
    }
    for (int64_t key = segment.merged.begin; key < segment.merged.end; ++key) {
      finish(keys.start + key);
      // Every segment that sees the key is among those that are added up.
      for (size_t other = 0; other < segments.size(); ++other) {
        const WindowSegment& part = segments[other];
        if (part.row == segment.row && key >= part.keys.begin &&
            key < part.keys.end) {
          EXPECT_GE(static_cast<int64_t>(other), segment.first_part);
          EXPECT_LE(other, i);
          EXPECT_FALSE(part.owns(key));
        }
      }
    }
    for (const Range& unseen : {segment.unseen_before, segment.unseen_after}) {
      for (int64_t token = unseen.begin; token < unseen.end; ++token) {
        finish(token);
      }
    }
  }
  for (int64_t row = 0; row < params.rows; ++row) {
    EXPECT_EQ(
        next_query[static_cast<size_t>(row)],
        row_span(params.query_spans, row, params.query_length).length);
  }
  for (const auto& batch : finished) {
    for (const int count : batch) {
      EXPECT_EQ(count, 1);
    }
  }
}

TEST(WindowSegments, FinishEveryKeyOnceForSmallWindows) {
  for (const int64_t keys : {0, 1, 7, 30}) {
    for (const int64_t queries : {0, 1, 8, 29}) {
      for (int64_t block = 1; block <= 4; block += 3) {
        for (int64_t left = 0; left <= 12; left += 4) {
          for (int64_t right = 0; right <= 6; right += 3) {
            for (const int64_t offset : {-5, 0, 9, 40}) {
              auto params =
                  make_params(queries, keys, {block, left, right, right == 3});
              params.query_offset = offset;
              expect_valid(params, 2, 4);
              expect_valid(params, 4, 12);
            }
          }
        }
      }
    }
  }
}

TEST(WindowSegments, FollowPositionTables) {
  auto params = make_params(12, 40, {1, 3, 2, false});
  std::vector<int64_t> forwards;
  std::vector<int64_t> backwards;
  std::vector<int64_t> jumps;
  for (int64_t i = 0; i < 12; ++i) {
    forwards.push_back(i * 3);
    backwards.push_back(36 - 3 * i);
    jumps.push_back(i * 17 % 45 - 3);
  }
  for (const auto* table : {&forwards, &backwards, &jumps}) {
    params.query_position = table->data();
    expect_valid(params, 2, 4);
  }
  params.query_position = forwards.data();
  EXPECT_EQ(plan_window_segments(params, 2, 4).size(), 3u);
  params.query_position = backwards.data();
  const auto whole = plan_window_segments(params, 2, 4);
  ASSERT_EQ(whole.size(), 1u);
  EXPECT_FALSE(whole[0].ordered);
}

TEST(WindowSegments, CoverSpansAndPackedRows) {
  auto params = make_params(20, 24, {2, 3, 1, false});
  const std::vector<int64_t> queries = {2, 9, 11, 0, 11, 8};
  const std::vector<int64_t> keys = {1, 8, 9, 5, 14, 7};
  params.rows = 3;
  params.packed = true;
  params.query_spans = queries.data();
  params.key_spans = keys.data();
  expect_valid(params, 2, 4);
  params.packed = false;
  params.batch = 3;
  expect_valid(params, 2, 4);
}

} // namespace
} // namespace subquad
