#pragma once

#include <cstdint>
#include <vector>

#include "common/window_attention.h"

// How the backward pass of window attention is divided on the CPU. A segment is
// a run of one row's queries; whoever works on it adds up the gradients of the
// keys that its queries see. A key seen by one segment only is finished there.
// Where the ranges of segments overlap, each keeps its part in a workspace, and
// the last of them adds up the parts in a second pass: no atomics, and the
// order of every sum follows from sizes and positions alone.
namespace subquad {

struct WindowSegment {
  int64_t row;
  Range
      queries;  // counted from the start of the row's span, like all keys below
  Range keys;   // hull of what the queries see
  Range owned;  // keys that no other segment sees
  Range merged; // shared keys that this segment finishes
  int64_t first_part;   // the first segment that shares keys with `merged`
  int64_t shared_keys;  // how many keys other segments see too
  int64_t shared_begin; // where they start in the workspace, in keys
  int64_t span;         // the most keys that one tile of the queries sees
  bool ordered;         // the hulls of successive tiles never move backwards
  // Keys that nobody sees, on the tensor's axis, before and after.
  Range unseen_before;
  Range unseen_after;

  SUBQUAD_HOST_DEVICE int64_t part_size() const {
    return keys.end - keys.begin;
  }

  SUBQUAD_HOST_DEVICE bool owns(int64_t key) const {
    return key >= owned.begin && key < owned.end;
  }

  // Place of a shared key in the workspace.
  SUBQUAD_HOST_DEVICE int64_t shared_index(int64_t key) const {
    return shared_begin +
        (key < owned.begin ? key - keys.begin
                           : key - owned.end + owned.begin - keys.begin);
  }
};

// Segments of `length` queries (one for the whole row where the order of
// positions would make ranges overlap too much); every row has at least one.
// `tile` queries are worked on at a time.
std::vector<WindowSegment> plan_window_segments(
    const WindowAttentionParams& params,
    int64_t tile,
    int64_t length);

} // namespace subquad
