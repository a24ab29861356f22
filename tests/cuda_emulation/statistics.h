#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "access.h"

namespace emu {

enum class Space { kShared, kGlobal };

// The accesses of one instruction, a warp's lanes taken together: its k-th
// execution in one lane with the k-th in the others.
struct Traffic {
  std::string code; // function and line
  Space space;
  bool writes;
  int64_t executions;
  // Shared memory: passes through the 32 banks. Global: sectors of 32 bytes.
  int64_t transactions;
  int64_t ideal; // transactions for as many bytes without conflict or waste

  double excess() const {
    return static_cast<double>(transactions) / static_cast<double>(ideal);
  }
};

// Of the launches under Options::statistics since the last clear.
std::vector<Traffic> traffic();
void clear_traffic();

void record(
    Space space,
    uintptr_t address,
    size_t bytes,
    Access access,
    const void* pc);
// Executions before this moment are not taken together with later ones.
void end_traffic_of_warp(int warp);

} // namespace emu
