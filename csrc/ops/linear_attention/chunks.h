#pragma once

#include "common/linear_attention.h"

// How rows of tokens are cut into chunks, which the kernels of linear attention
// work on.
namespace subquad::cuda {

// A chunk lies in one group of tokens. The queries of a group see all keys
// before it and, with a blindspot, none or complete buckets of its own.
struct ChunkRule {
  int64_t size;  // most tokens of a chunk
  int64_t group; // tokens of a group
  int64_t per;   // chunks of a group
};

// `most`: tokens that a tile has room for.
SUBQUAD_HOST_DEVICE inline ChunkRule
chunk_rule(bool causal, int64_t blindspot, int64_t most) {
  if (!causal || blindspot == 1) {
    return {most, most, 1};
  }
  if (blindspot <= most) {
    const int64_t size = most / blindspot * blindspot;
    return {size, size, 1};
  }
  return {most, blindspot, ceil_divide(blindspot, most)};
}

SUBQUAD_HOST_DEVICE inline int64_t count_chunks(
    const ChunkRule& rule,
    int64_t length) {
  return length / rule.group * rule.per +
      ceil_divide(length % rule.group, rule.size);
}

// The queries or the keys of all rows. Chunks have places on one axis, which is
// as long as the host can tell without lengths; some of them are empty.
struct TokenAxis {
  const int64_t* spans; // [R, 2] or null
  const int64_t* order; // [B, tokens] or null
  int64_t tokens;
  int64_t rows;
  bool packed;
  ChunkRule rule;
};

// First place of a row's chunks; the one of the next row is far enough away:
// every group adds at most one chunk that is not full.
SUBQUAD_HOST_DEVICE inline int64_t
first_place(const TokenAxis& axis, int64_t row, int64_t start) {
  if (!axis.packed) {
    return row * count_chunks(axis.rule, axis.tokens);
  }
  const int64_t groups = axis.rule.per == 1 ? 0 : start / axis.rule.group;
  return start / axis.rule.size + groups + row;
}

SUBQUAD_HOST_DEVICE inline int64_t count_places(const TokenAxis& axis) {
  return axis.rows == 0 ? 0 : first_place(axis, axis.rows, axis.tokens);
}

// Row `row` and its tokens.
struct RowOfTokens {
  int64_t row;
  int64_t batch;
  Span span;
  int64_t place; // of its first chunk
  int64_t chunks;
};

SUBQUAD_HOST_DEVICE inline RowOfTokens row_of_tokens(
    const TokenAxis& axis,
    int64_t row) {
  const Span span = clamped_row_span(axis.spans, row, axis.tokens);
  return {
      row,
      axis.packed ? 0 : row,
      span,
      first_place(axis, row, span.start),
      count_chunks(axis.rule, span.length)};
}

struct Chunk {
  RowOfTokens row;
  int64_t index; // in its row
  int64_t begin; // rank of its first token in the row
  int count;     // of tokens; 0: no chunk has this place
};

SUBQUAD_HOST_DEVICE inline Chunk chunk_at(
    const TokenAxis& axis,
    int64_t place) {
  int64_t row = 0;
  if (!axis.packed) {
    row = place / count_chunks(axis.rule, axis.tokens);
  } else {
    // The last row that begins here or before.
    int64_t end = axis.rows;
    while (end - row > 1) {
      const int64_t middle = row + (end - row) / 2;
      const Span span = clamped_row_span(axis.spans, middle, axis.tokens);
      if (first_place(axis, middle, span.start) <= place) {
        row = middle;
      } else {
        end = middle;
      }
    }
  }
  Chunk chunk{row_of_tokens(axis, row), 0, 0, 0};
  chunk.index = place - chunk.row.place;
  if (chunk.index >= 0 && chunk.index < chunk.row.chunks) {
    const int64_t group = chunk.index / axis.rule.per;
    chunk.begin =
        group * axis.rule.group + chunk.index % axis.rule.per * axis.rule.size;
    const int64_t end = min_index(
        min_index(chunk.begin + axis.rule.size, (group + 1) * axis.rule.group),
        chunk.row.span.length);
    chunk.count = static_cast<int>(end - chunk.begin);
  }
  return chunk;
}

// Token of a row's rank on the tensor's axis.
SUBQUAD_HOST_DEVICE inline int64_t
token_of(const TokenAxis& axis, const RowOfTokens& row, int64_t rank) {
  return clamped_token(
      axis.order, axis.tokens, row.batch, row.span.start + rank, axis.tokens);
}

} // namespace subquad::cuda
