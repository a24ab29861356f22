#pragma once

#include "cpu/micro_kernel.h"
#include "ops/window_attention/cpu_rows.h"

// How the queries of window attention are cut into tiles, the unit of packing
// and of parallel work, and groups, the rows of one register tile. The cuts
// follow from sizes and positions alone, never from the number of threads.
namespace subquad {

namespace {

constexpr int64_t kTileQueries = 96;

// Consecutive queries with similar windows.
struct Group {
  int64_t begin; // first query, within the tile
  int64_t count; // at most kTileRows
  Range keys;    // union of what its queries see
  int64_t limit; // most summaries that one of them sees
};

struct Tile {
  int64_t begin; // first query, on the tensor's axis
  int64_t count; // at most kTileQueries
  Sight sight[kTileQueries];
  int64_t groups;
  Group group[kTileQueries];
  Range keys; // union of what its queries see
  int64_t limit;
};

inline Range unite(const Range& a, const Range& b) {
  if (a.empty() || b.empty()) {
    return a.empty() ? b : a;
  }
  return {min_index(a.begin, b.begin), max_index(a.end, b.end)};
}

inline Range intersect(const Range& a, const Range& b) {
  const int64_t begin = max_index(a.begin, b.begin);
  return {begin, max_index(begin, min_index(a.end, b.end))};
}

inline int64_t size_of(const Range& range) {
  return max_index(range.end - range.begin, 0);
}

// What query `index` sees, given the begin of the last query's block, which is
// updated: consecutive positions need no division.
inline Sight next_sight(
    const WindowAttentionParams& params,
    const HeadRow& at,
    int64_t index,
    int64_t& first) {
  const WindowRule& rule = params.window;
  const int64_t position =
      query_position(params, at.batch, at.queries.start, index);
  if (position == first + rule.block) {
    first = position;
  } else if (position < first || position > first + rule.block) {
    first = block_begin(position, rule);
  }
  return {
      position - first,
      first - rule.left,
      block_keys(position, first, rule, at.keys.length),
      at.summaries == 0
          ? 0
          : summary_limit(position, params.summary, at.summaries)};
}

// A query joins the group before it while the union of their windows stays
// close to the longest of them: a sliding window moves a little with each
// query, the window of the next block is another group's.
inline void plan_tile(
    const WindowAttentionParams& params,
    const HeadRow& at,
    int64_t begin,
    int64_t count,
    Tile& tile) {
  tile.begin = begin;
  tile.count = count;
  tile.groups = 0;
  tile.keys = {0, 0};
  tile.limit = 0;
  int64_t longest = 0;
  int64_t first = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Sight& sight = tile.sight[i] =
        next_sight(params, at, begin + i, first);
    tile.keys = unite(tile.keys, sight.keys);
    tile.limit = max_index(tile.limit, sight.limit);
    Group* group = tile.groups > 0 ? &tile.group[tile.groups - 1] : nullptr;
    if (group != nullptr && group->count < kTileRows) {
      const Range keys = unite(group->keys, sight.keys);
      longest = max_index(longest, size_of(sight.keys));
      if (size_of(keys) <= longest + max_index(kTileRows, longest / 8)) {
        group->keys = keys;
        group->limit = max_index(group->limit, sight.limit);
        ++group->count;
        continue;
      }
    }
    tile.group[tile.groups++] = {i, 1, sight.keys, sight.limit};
    longest = size_of(sight.keys);
  }
}

} // namespace

} // namespace subquad
