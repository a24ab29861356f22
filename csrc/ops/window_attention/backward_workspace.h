#pragma once

#include <cstddef>
#include <cstdint>

#include "common/window_attention.h"

// The memory between the kernels of window attention's backward pass.
namespace subquad::cuda {

// Parts of results that several blocks add to, and what is computed once for
// all kernels. Sums are in the accumulation type.
struct BackwardWorkspace {
  void* delta;                // [B, H, L], by token
  int64_t* hulls;             // [B, tiles, 2]: ranks of the keys that a tile of
                              // queries sees; with a table of positions only
  void* key_bias;             // [Hkv, B, S], by rank
  void* summary_key;          // [segments, R, Hkv, C, D]
  void* summary_value;        // [segments, R, Hkv, C, M]
  void* bias;                 // [B, segments, H, block, slots]
  void* relative_key;         // [B, segments, H, slots, D]
  void* summary_relative_key; // [B, segments, H, T, D]

  // Queries of a segment, and how many segments there are; of a row for the
  // summaries, of the axis for the tables.
  int64_t summary_segment;
  int64_t summary_segments;
  int64_t table_segment;
  int64_t table_segments;

  size_t bytes;
};

// The smallest tile of all kernels, which bounds the number of hulls.
constexpr int64_t kSmallestTile = 16;
// A multiple of all tiles' rows.
constexpr int64_t kSegmentUnit = 512;

// `acc_bytes`: size of the accumulation type. Without memory only `bytes` and
// the segments mean something.
inline BackwardWorkspace backward_workspace(
    const WindowAttentionParams& params,
    const WindowAttentionGradients& gradients,
    size_t acc_bytes,
    void* memory) {
  BackwardWorkspace workspace{};
  // Few enough parts for the memory of the summaries themselves times some, and
  // enough blocks where there are many queries to a summary.
  constexpr int64_t kMaxSegments = 32;
  const int64_t length = params.packed
      ? ceil_divide(params.query_length, max_index(params.rows, 1))
      : params.query_length;
  workspace.summary_segments =
      max_index(min_index(length / (2 * kSegmentUnit), kMaxSegments), 1);
  workspace.summary_segment = max_index(
      ceil_divide(
          ceil_divide(params.query_length, workspace.summary_segments),
          kSegmentUnit) *
          kSegmentUnit,
      kSegmentUnit);
  // A table has no more lines than its segment has queries: so all parts
  // together take O(L) lines.
  int64_t lines = kSegmentUnit;
  if (gradients.grad_bias != nullptr) {
    lines = max_index(lines, params.window.block);
  }
  if (gradients.grad_relative_key != nullptr) {
    lines = max_index(lines, window_slots(params.window));
  }
  if (gradients.grad_summary_relative_key != nullptr) {
    lines = max_index(lines, params.summary_relative_keys);
  }
  workspace.table_segment = ceil_divide(lines, kSegmentUnit) * kSegmentUnit;
  workspace.table_segments =
      ceil_divide(params.query_length, workspace.table_segment);

  const auto take = [&](bool wanted, int64_t elements, size_t size) -> void* {
    if (!wanted) {
      return nullptr;
    }
    void* address = static_cast<unsigned char*>(memory) + workspace.bytes;
    workspace.bytes += (static_cast<size_t>(elements) * size + 15) / 16 * 16;
    return address;
  };
  const int64_t queries = params.batch * params.heads * params.query_length;
  const int64_t parts = params.batch * workspace.table_segments * params.heads;
  const int64_t summaries = workspace.summary_segments * params.rows *
      params.key_heads * params.summaries;
  workspace.delta = take(true, queries, acc_bytes);
  workspace.hulls = static_cast<int64_t*>(take(
      params.query_position != nullptr,
      params.batch * 2 * ceil_divide(params.query_length, kSmallestTile),
      sizeof(int64_t)));
  workspace.key_bias = take(
      gradients.grad_key_bias != nullptr,
      params.key_heads * params.batch * params.key_length,
      acc_bytes);
  workspace.summary_key = take(
      gradients.grad_summary_key != nullptr,
      summaries * params.head_dim,
      acc_bytes);
  workspace.summary_value = take(
      gradients.grad_summary_value != nullptr,
      summaries * params.value_dim,
      acc_bytes);
  workspace.bias = take(
      gradients.grad_bias != nullptr,
      parts * params.window.block * window_slots(params.window),
      acc_bytes);
  workspace.relative_key = take(
      gradients.grad_relative_key != nullptr,
      parts * window_slots(params.window) * params.head_dim,
      acc_bytes);
  workspace.summary_relative_key = take(
      gradients.grad_summary_relative_key != nullptr,
      parts * params.summary_relative_keys * params.head_dim,
      acc_bytes);
  return workspace;
}

} // namespace subquad::cuda
