#include "statistics.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "block.h"
#include "symbols.h"

namespace emu {
namespace {

constexpr int kBanks = 32;
constexpr uintptr_t kBankBytes = 4;
constexpr uintptr_t kPassBytes = kBanks * kBankBytes;
constexpr uintptr_t kSectorBytes = 32;

struct Lane {
  uintptr_t address;
  size_t bytes; // 0: the lane did not execute it
};
using Execution = std::array<Lane, kWarpSize>;

// The executions of one instruction by one warp that wait for their lanes.
struct Pending {
  std::vector<Execution> executions;
  std::array<size_t, kWarpSize> count{}; // by lane
};

struct Instruction {
  Space space;
  bool writes;
  int64_t executions = 0;
  int64_t transactions = 0;
  int64_t ideal = 0;
  std::array<Pending, kMaxThreads / kWarpSize> warps;
};

std::map<const void*, Instruction> instructions;

int64_t round_up(uintptr_t bytes, uintptr_t unit) {
  return static_cast<int64_t>((bytes + unit - 1) / unit);
}

// Lanes are served in groups that ask for at most 128 bytes; in a group a bank
// gives one word a pass, to all lanes that want it.
void count_passes(const Execution& execution, Instruction& total) {
  size_t widest = 1;
  for (const Lane& lane : execution) {
    widest = std::max(widest, lane.bytes);
  }
  const size_t group = widest <= kBankBytes ? kWarpSize : kPassBytes / widest;
  for (size_t first = 0; first < kWarpSize; first += group) {
    std::array<std::vector<uintptr_t>, kBanks> wanted;
    for (size_t i = first; i < first + group; ++i) {
      const Lane& lane = execution[i];
      for (uintptr_t byte = 0; byte < lane.bytes; byte += kBankBytes) {
        const uintptr_t word = (lane.address + byte) / kBankBytes;
        auto& words = wanted[word % kBanks];
        if (std::find(words.begin(), words.end(), word) == words.end()) {
          words.push_back(word);
        }
      }
    }
    size_t passes = 0;
    for (const auto& words : wanted) {
      passes = std::max(passes, words.size());
    }
    total.transactions += static_cast<int64_t>(passes);
    total.ideal += passes > 0 ? 1 : 0;
  }
}

void count_sectors(const Execution& execution, Instruction& total) {
  std::vector<uintptr_t> sectors;
  std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
  for (const Lane& lane : execution) {
    if (lane.bytes == 0) {
      continue;
    }
    ranges.emplace_back(lane.address, lane.address + lane.bytes);
    for (uintptr_t sector = lane.address / kSectorBytes;
         sector <= (lane.address + lane.bytes - 1) / kSectorBytes;
         ++sector) {
      sectors.push_back(sector);
    }
  }
  std::sort(sectors.begin(), sectors.end());
  sectors.erase(std::unique(sectors.begin(), sectors.end()), sectors.end());
  std::sort(ranges.begin(), ranges.end());
  uintptr_t end = 0;
  uintptr_t bytes = 0; // asked for, each once
  for (const auto& [begin, stop] : ranges) {
    bytes += stop > end ? stop - std::max(begin, end) : 0;
    end = std::max(end, stop);
  }
  total.transactions += static_cast<int64_t>(sectors.size());
  total.ideal += round_up(bytes, kSectorBytes);
}

void flush(Instruction& instruction, int warp) {
  Pending& pending = instruction.warps[warp];
  for (const Execution& execution : pending.executions) {
    ++instruction.executions;
    if (instruction.space == Space::kShared) {
      count_passes(execution, instruction);
    } else {
      count_sectors(execution, instruction);
    }
  }
  pending.executions.clear();
  pending.count.fill(0);
}

} // namespace

void record(
    Space space,
    uintptr_t address,
    size_t bytes,
    Access access,
    const void* pc) {
  Instruction& instruction = instructions[pc];
  instruction.space = space;
  instruction.writes = access == Access::kWrite || access == Access::kAtomic;
  Pending& pending = instruction.warps[running.warp];
  const size_t execution = pending.count[running.lane]++;
  if (execution >= pending.executions.size()) {
    pending.executions.resize(execution + 1);
  }
  pending.executions[execution][running.lane] = {address, bytes};
}

void end_traffic_of_warp(int warp) {
  for (auto& [pc, instruction] : instructions) {
    flush(instruction, warp);
  }
}

std::vector<Traffic> traffic() {
  std::vector<Traffic> result;
  for (auto& [pc, instruction] : instructions) {
    result.push_back(
        {describe_code(pc),
         instruction.space,
         instruction.writes,
         instruction.executions,
         instruction.transactions,
         instruction.ideal});
  }
  return result;
}

void clear_traffic() {
  instructions.clear();
}

} // namespace emu
