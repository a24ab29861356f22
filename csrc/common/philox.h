#pragma once

#include <cstdint>

#include "common/macros.h"

// Counter-based random numbers (Salmon, Moraes, Dror and Shaw, 2011, "Parallel
// random numbers: as easy as 1, 2, 3", Philox4x32-10): a dropout mask is
// recomputed from (seed, offset, index), so that it is never stored and does
// not depend on the order of execution.
namespace subquad {

struct PhiloxWords {
  uint32_t word[4];
};

SUBQUAD_HOST_DEVICE inline PhiloxWords
philox(uint64_t seed, uint64_t offset, uint64_t counter) {
  uint32_t c0 = static_cast<uint32_t>(counter);
  uint32_t c1 = static_cast<uint32_t>(counter >> 32);
  uint32_t c2 = static_cast<uint32_t>(offset);
  uint32_t c3 = static_cast<uint32_t>(offset >> 32);
  uint32_t key0 = static_cast<uint32_t>(seed);
  uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * c0;
    const uint64_t product1 = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return {{c0, c1, c2, c3}};
}

// Dropout of attention weights: weight number `index` of the whole call is kept
// when its uniform word is at least `probability`.
struct Dropout {
  double probability;
  uint64_t seed;
  uint64_t offset;

  SUBQUAD_HOST_DEVICE bool keep(uint64_t index) const {
    const PhiloxWords words = philox(seed, offset, index / 4);
    // Chosen without an index: registers of a GPU have none.
    const uint32_t low = index % 2 == 0 ? words.word[0] : words.word[1];
    const uint32_t high = index % 2 == 0 ? words.word[2] : words.word[3];
    const uint32_t word = index % 4 < 2 ? low : high;
    return word * (1.0 / 4294967296.0) >= probability;
  }
};

} // namespace subquad
