#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "ops/linear_attention/chunks.h"

namespace subquad {
namespace {

using cuda::Chunk;
using cuda::ChunkRule;
using cuda::TokenAxis;

// Every token of every row is in one chunk, in order, and a query sees whole
// groups before its own.
void check_axis(const TokenAxis& axis, int64_t blindspot, int64_t most) {
  const int64_t places = cuda::count_places(axis);
  std::vector<int64_t> next(axis.rows, 0); // rank that is due
  std::vector<int64_t> chunks(axis.rows, 0);
  for (int64_t place = 0; place < places; ++place) {
    const Chunk chunk = cuda::chunk_at(axis, place);
    if (chunk.count == 0) {
      continue;
    }
    const int64_t row = chunk.row.row;
    ASSERT_EQ(chunk.row.place + chunk.index, place);
    ASSERT_EQ(chunk.index, chunks[row]++);
    ASSERT_EQ(chunk.begin, next[row]);
    ASSERT_LE(chunk.count, most);
    next[row] += chunk.count;
    const int64_t group = chunk.index / axis.rule.per * axis.rule.group;
    for (int64_t rank = chunk.begin; rank < next[row]; ++rank) {
      const int64_t end = causal_end(rank, blindspot, chunk.row.span.length);
      ASSERT_GE(end, group);
      // What is not of the state lies in the chunk itself.
      ASSERT_TRUE(end == group || end > chunk.begin);
      ASSERT_LE(end, next[row]);
    }
  }
  for (int64_t row = 0; row < axis.rows; ++row) {
    const auto found = cuda::row_of_tokens(axis, row);
    EXPECT_EQ(next[row], found.span.length);
    EXPECT_EQ(chunks[row], found.chunks);
  }
}

TEST(LinearAttentionChunks, CoverPackedRows) {
  std::mt19937 random(0);
  for (int trial = 0; trial < 300; ++trial) {
    const int64_t most = trial % 2 == 0 ? 32 : 64;
    const int64_t blindspot = trial % 3 == 0 ? 1 : 1 + random() % 200;
    std::vector<int64_t> spans;
    int64_t tokens = random() % 5;
    const int64_t rows = 1 + random() % 6;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t length = random() % (trial % 5 == 0 ? 4 : 300);
      spans.insert(spans.end(), {tokens, length});
      tokens += length;
    }
    tokens += random() % 3;
    const ChunkRule rule =
        cuda::chunk_rule(true, min_index(blindspot, tokens + 1), most);
    check_axis(
        {spans.data(), nullptr, tokens, rows, true, rule}, blindspot, most);
  }
}

TEST(LinearAttentionChunks, CoverRowsOfABatch) {
  for (const int64_t blindspot : {1, 3, 32, 64, 65, 70, 1000}) {
    for (const int64_t tokens : {0, 1, 63, 64, 65, 140, 333}) {
      const std::vector<int64_t> spans = {0, tokens, tokens / 2, tokens / 3};
      const ChunkRule rule =
          cuda::chunk_rule(true, min_index(blindspot, tokens + 1), 64);
      check_axis(
          {spans.data(), nullptr, tokens, 2, false, rule}, blindspot, 64);
      check_axis({nullptr, nullptr, tokens, 2, false, rule}, blindspot, 64);
    }
  }
}

// Values that only a device could check stay inside the tensors.
TEST(LinearAttentionChunks, WrongSpansStayInside) {
  const std::vector<int64_t> spans = {-5, 1000, 7, -3, 400, 90};
  const ChunkRule rule = cuda::chunk_rule(true, 1, 64);
  const TokenAxis axis{spans.data(), nullptr, 100, 3, true, rule};
  for (int64_t place = 0; place < cuda::count_places(axis); ++place) {
    const Chunk chunk = cuda::chunk_at(axis, place);
    EXPECT_GE(chunk.count, 0);
    EXPECT_LE(chunk.row.span.start + chunk.begin + chunk.count, 100);
  }
}

TEST(LinearAttentionChunks, NoRows) {
  const TokenAxis axis{
      nullptr, nullptr, 100, 0, true, cuda::chunk_rule(true, 1, 64)};
  EXPECT_EQ(cuda::count_places(axis), 0);
}

} // namespace
} // namespace subquad
