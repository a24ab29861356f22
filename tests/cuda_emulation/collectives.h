#pragma once

// Warp shuffles and votes.

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "block.h"

namespace emu {

enum class Shuffle { kIndex, kUp, kDown, kXor };

// The 8 bytes `value` of the lane that `shuffle` names, as CUDA defines it.
uint64_t shuffle(
    Shuffle shuffle,
    unsigned mask,
    uint64_t value,
    int argument,
    int width,
    const Site& site);

template <class T>
T shuffle_as(
    Shuffle kind,
    unsigned mask,
    T value,
    int argument,
    int width,
    const Site& site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = shuffle(kind, mask, bits, argument, width, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

} // namespace emu

template <class T>
T __shfl_sync(
    unsigned mask,
    T value,
    int source,
    int width = emu::kWarpSize,
    emu::Site site = emu::Site::current()) {
  return emu::shuffle_as(
      emu::Shuffle::kIndex, mask, value, source, width, site);
}

template <class T>
T __shfl_up_sync(
    unsigned mask,
    T value,
    unsigned delta,
    int width = emu::kWarpSize,
    emu::Site site = emu::Site::current()) {
  return emu::shuffle_as(
      emu::Shuffle::kUp, mask, value, static_cast<int>(delta), width, site);
}

template <class T>
T __shfl_down_sync(
    unsigned mask,
    T value,
    unsigned delta,
    int width = emu::kWarpSize,
    emu::Site site = emu::Site::current()) {
  return emu::shuffle_as(
      emu::Shuffle::kDown, mask, value, static_cast<int>(delta), width, site);
}

template <class T>
T __shfl_xor_sync(
    unsigned mask,
    T value,
    int lane_mask,
    int width = emu::kWarpSize,
    emu::Site site = emu::Site::current()) {
  return emu::shuffle_as(
      emu::Shuffle::kXor, mask, value, lane_mask, width, site);
}

unsigned __ballot_sync(
    unsigned mask,
    int predicate,
    emu::Site site = emu::Site::current());
int __any_sync(
    unsigned mask,
    int predicate,
    emu::Site site = emu::Site::current());
int __all_sync(
    unsigned mask,
    int predicate,
    emu::Site site = emu::Site::current());
