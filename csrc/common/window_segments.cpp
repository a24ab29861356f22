#include "common/window_segments.h"

#include <cstddef>

namespace subquad {

namespace {

// One row: its spans, and where unseen keys before and after it begin and end.
struct Row {
  int64_t index;
  int64_t batch;
  Span queries;
  Span keys;
};

// Hull of what the queries [begin, end) of a row see.
Range seen_keys(
    const WindowAttentionParams& params,
    const Row& row,
    const Range& queries) {
  const auto keys = [&](int64_t query) {
    const int64_t position = query_position(
        params, row.batch, row.queries.start, row.queries.start + query);
    return window_keys(position, params.window, row.keys.length);
  };
  if (params.query_position == nullptr) {
    // Both ends of a window move forwards with the position.
    return {keys(queries.begin).begin, keys(queries.end - 1).end};
  }
  Range hull{0, 0};
  for (int64_t query = queries.begin; query < queries.end; ++query) {
    const Range range = keys(query);
    if (hull.empty()) {
      hull = range;
    } else if (!range.empty()) {
      hull.begin = min_index(hull.begin, range.begin);
      hull.end = max_index(hull.end, range.end);
    }
  }
  return hull;
}

WindowSegment make_segment(
    const WindowAttentionParams& params,
    const Row& row,
    const Range& queries,
    int64_t tile) {
  WindowSegment segment{};
  segment.row = row.index;
  segment.queries = queries;
  segment.ordered = true;
  Range before{0, 0};
  for (int64_t begin = queries.begin; begin < queries.end; begin += tile) {
    const Range keys =
        seen_keys(params, row, {begin, min_index(begin + tile, queries.end)});
    if (keys.empty()) {
      continue;
    }
    if (segment.keys.empty()) {
      segment.keys = keys;
    }
    segment.ordered =
        segment.ordered && before.begin <= keys.begin && before.end <= keys.end;
    segment.keys.begin = min_index(segment.keys.begin, keys.begin);
    segment.keys.end = max_index(segment.keys.end, keys.end);
    segment.span = max_index(segment.span, keys.end - keys.begin);
    before = keys;
  }
  return segment;
}

// Whether segments can share keys with their neighbours only by overlapping
// ends, and cheaply.
bool overlaps_are_small(
    const std::vector<WindowSegment>& segments,
    size_t first,
    int64_t keys,
    int64_t length) {
  int64_t total = 0;
  Range before{0, 0};
  for (size_t i = first; i < segments.size(); ++i) {
    const Range& range = segments[i].keys;
    if (range.empty()) {
      continue;
    }
    if (range.begin < before.begin || range.end < before.end) {
      return false;
    }
    total += range.end - range.begin;
    before = range;
  }
  return total <= 2 * keys + length;
}

void share_keys(
    std::vector<WindowSegment>& segments,
    size_t first,
    int64_t key_start,
    int64_t& shared) {
  int64_t end = 0; // of the keys seen so far
  for (size_t i = first; i < segments.size(); ++i) {
    WindowSegment& segment = segments[i];
    if (segment.keys.empty()) {
      segment.keys = {end, end};
    }
    const Range& keys = segment.keys;
    int64_t next = keys.end;
    for (size_t later = i + 1; later < segments.size(); ++later) {
      if (!segments[later].keys.empty()) {
        next = min_index(next, segments[later].keys.begin);
        break;
      }
    }
    next = max_index(next, keys.begin);
    segment.unseen_before = {
        key_start + min_index(end, keys.begin), key_start + keys.begin};
    segment.owned.begin = max_index(keys.begin, min_index(end, keys.end));
    segment.owned.end = max_index(segment.owned.begin, next);
    segment.merged = {keys.begin, min_index(segment.owned.begin, next)};
    segment.shared_keys =
        segment.part_size() - (segment.owned.end - segment.owned.begin);
    segment.shared_begin = shared;
    shared += segment.shared_keys;
    end = max_index(end, keys.end);
    segment.first_part = static_cast<int64_t>(i);
    while (!segment.merged.empty() &&
           segment.first_part > static_cast<int64_t>(first) &&
           segments[static_cast<size_t>(segment.first_part) - 1].keys.end >
               segment.merged.begin) {
      --segment.first_part;
    }
    segment.unseen_after = {key_start + end, key_start + end};
  }
}

} // namespace

std::vector<WindowSegment> plan_window_segments(
    const WindowAttentionParams& params,
    int64_t tile,
    int64_t length) {
  std::vector<WindowSegment> segments;
  int64_t shared = 0;
  int64_t unseen = 0; // packed keys from here on have no segment yet
  for (int64_t index = 0; index < params.rows; ++index) {
    const Row row{
        index,
        params.packed ? 0 : index,
        row_span(params.query_spans, index, params.query_length),
        row_span(params.key_spans, index, params.key_length)};
    const size_t first = segments.size();
    int64_t begin = 0;
    do {
      const int64_t end = min_index(begin + length, row.queries.length);
      segments.push_back(make_segment(params, row, {begin, end}, tile));
      begin = end;
    } while (begin < row.queries.length);
    if (!overlaps_are_small(segments, first, row.keys.length, length)) {
      segments.resize(first);
      segments.push_back(
          make_segment(params, row, {0, row.queries.length}, tile));
    }
    share_keys(segments, first, row.keys.start, shared);
    // What lies outside the spans of the batch entry is nobody's either.
    segments[first].unseen_before.begin = params.packed ? unseen : 0;
    WindowSegment& last = segments.back();
    const bool closes = !params.packed || index + 1 == params.rows;
    last.unseen_after.end =
        closes ? params.key_length : row.keys.start + row.keys.length;
    unseen = last.unseen_after.end;
  }
  return segments;
}

} // namespace subquad
