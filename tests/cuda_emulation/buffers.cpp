#include "buffers.h"

#include <algorithm>
#include <map>
#include <memory>
#include <sstream>
#include <utility>
#include <vector>

#include "block.h"
#include "launcher.h"
#include "report.h"
#include "shadow.h"
#include "statistics.h"

namespace emu {
namespace {

constexpr size_t kRedZone = 4096;
constexpr size_t kAlignment = 256; // as cudaMalloc

struct Registered {
  std::string name;
  uintptr_t begin;
  uintptr_t end;
  bool read_only;
};

// Overlapping registrations in one.
struct Range {
  std::string name;
  uintptr_t begin;
  uintptr_t end;
  bool read_only;
  std::unique_ptr<Shadow<GridMark>> shadow;

  // Not an address that wraps round, either.
  bool contains(uintptr_t address, size_t bytes) const {
    return address >= begin && address < end && bytes <= end - address;
  }
};

std::map<int64_t, Registered> registered;
int64_t next_id = 0;
std::vector<Range> ranges; // by address
bool current = true;       // ranges say what `registered` says

// The last range that an instruction met, which it most likely meets again.
constexpr size_t kRemembered = 1024;
const Range* remembered[kRemembered];

void rebuild() {
  std::vector<Registered> sorted;
  for (const auto& [id, buffer] : registered) {
    if (buffer.begin < buffer.end) {
      sorted.push_back(buffer);
    }
  }
  std::sort(
      sorted.begin(),
      sorted.end(),
      [](const Registered& a, const Registered& b) {
        return a.begin < b.begin;
      });
  ranges.clear();
  for (Registered& buffer : sorted) {
    if (!ranges.empty() && buffer.begin < ranges.back().end) {
      Range& last = ranges.back();
      last.name += "+" + buffer.name;
      last.end = std::max(last.end, buffer.end);
      last.read_only |= buffer.read_only;
    } else {
      ranges.push_back(
          {buffer.name, buffer.begin, buffer.end, buffer.read_only, nullptr});
    }
  }
  std::fill_n(remembered, kRemembered, nullptr);
  current = true;
}

const Range* find(uintptr_t address, size_t bytes, const void* pc) {
  if (!current) {
    rebuild();
  }
  const Range*& last =
      remembered[reinterpret_cast<uintptr_t>(pc) / 2 % kRemembered];
  if (last != nullptr && last->contains(address, bytes)) {
    return last;
  }
  auto after = std::upper_bound(
      ranges.begin(),
      ranges.end(),
      address,
      [](uintptr_t value, const Range& range) { return value < range.begin; });
  if (after == ranges.begin() || !std::prev(after)->contains(address, bytes)) {
    return nullptr;
  }
  last = &*std::prev(after);
  return last;
}

std::string describe(Access access, uintptr_t address, size_t bytes) {
  std::ostringstream text;
  text << verb(access) << " of " << bytes << " bytes at ";
  auto after = std::upper_bound(
      ranges.begin(),
      ranges.end(),
      address,
      [](uintptr_t value, const Range& range) { return value < range.begin; });
  // Named after the nearest buffer, if it can have been meant.
  constexpr uintptr_t kNear = 1 << 20;
  const Range* before = after == ranges.begin() ? nullptr : &*std::prev(after);
  const uintptr_t above = before == nullptr ? kNear : address - before->begin;
  const uintptr_t below =
      after == ranges.end() ? kNear : after->begin - address;
  if (before != nullptr && (address < before->end + kNear && above <= below)) {
    text << before->name << " + " << above << " (of "
         << before->end - before->begin << " bytes)";
  } else if (below < kNear) {
    text << after->name << " - " << below;
  } else {
    text << "address 0x" << std::hex << address << " of no buffer";
  }
  return text.str();
}

unsigned char* aligned(unsigned char* memory) {
  const auto address = reinterpret_cast<uintptr_t>(memory) + kRedZone;
  return memory + kRedZone + (kAlignment - address % kAlignment) % kAlignment;
}

} // namespace

Registration::Registration(
    std::string name,
    const void* address,
    size_t bytes,
    bool read_only)
    : id_(next_id++) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  registered[id_] = {std::move(name), begin, begin + bytes, read_only};
  current = false;
}

Registration::~Registration() {
  registered.erase(id_);
  current = false;
}

Arena::Arena(std::string name, size_t bytes, bool read_only)
    : memory_(new unsigned char[kRedZone + kAlignment + bytes + kRedZone]),
      data_(aligned(memory_)),
      registration_(std::move(name), data_, bytes, read_only) {}

Arena::~Arena() {
  delete[] memory_;
}

void check_global_access(
    uintptr_t address,
    size_t bytes,
    Access access,
    const void* pc) {
  const Range* range = find(address, bytes, pc);
  if (range == nullptr) {
    if (options().registered_only) {
      report(Kind::kOutOfBounds, describe(access, address, bytes), pc);
      stop_launch();
    }
    return;
  }
  const bool reads = access == Access::kRead || access == Access::kWarpRead;
  if (!reads && range->read_only) {
    report(Kind::kReadOnly, describe(access, address, bytes), pc);
    stop_launch();
  }
  if (!range->read_only) {
    const uintptr_t base = range->begin & ~uintptr_t{3};
    auto& shadow = const_cast<Range*>(range)->shadow;
    if (shadow == nullptr) {
      shadow = std::make_unique<Shadow<GridMark>>(range->end - base);
    }
    const Conflict conflict = shadow->touch(address - base, bytes, access);
    if (conflict.access != nullptr) {
      report(
          Kind::kRace,
          describe(access, address, bytes) + ", not ordered with a " +
              conflict.access + " by " +
              (conflict.other_block ? "block " : "thread ") +
              std::to_string(conflict.other),
          pc);
    }
  }
  if (options().statistics) {
    record(Space::kGlobal, address, bytes, access, pc);
  }
}

} // namespace emu
