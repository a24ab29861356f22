#include "collectives.h"

#include <bit>
#include <string>

#include "report.h"

namespace emu {
namespace {

struct ShuffleLane {
  Shuffle shuffle;
  int argument;
  int width;
  uint64_t value;
  uint64_t result;
};

// The lane read by `lane`, which is itself where CUDA says so.
int source_lane(const ShuffleLane& operand, int lane) {
  const int first = lane & ~(operand.width - 1);
  int source = lane;
  switch (operand.shuffle) {
    case Shuffle::kIndex:
      return first + (operand.argument & (operand.width - 1));
    case Shuffle::kUp:
      source = lane - operand.argument;
      return source < first ? lane : source;
    case Shuffle::kDown:
      source = lane + operand.argument;
      return source >= first + operand.width ? lane : source;
    case Shuffle::kXor:
      source = lane ^ operand.argument;
      return source >= first + operand.width ? lane : source;
  }
  return lane;
}

void shuffle_lanes(const Meeting& meeting) {
  for (unsigned rest = meeting.mask; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    auto& operand = *static_cast<ShuffleLane*>(meeting.operand[lane]);
    const int source = source_lane(operand, lane);
    if (meeting.operand[source] == nullptr) {
      report(
          Kind::kCollectiveMask,
          "shuffle: lane " + std::to_string(lane) + " reads lane " +
              std::to_string(source) + ", which is not in the mask",
          nullptr);
      stop_launch();
    }
    operand.result =
        static_cast<const ShuffleLane*>(meeting.operand[source])->value;
  }
}

struct VoteLane {
  bool predicate;
  unsigned ballot;
};

unsigned vote(unsigned mask, int predicate, const Site& site) {
  VoteLane operand{predicate != 0, 0};
  meet(site, "vote", mask, &operand, [](const Meeting& meeting) {
    unsigned ballot = 0;
    for (unsigned rest = meeting.mask; rest != 0; rest &= rest - 1) {
      const int lane = std::countr_zero(rest);
      const auto* voter = static_cast<const VoteLane*>(meeting.operand[lane]);
      ballot |= unsigned{voter->predicate} << lane;
    }
    for (unsigned rest = meeting.mask; rest != 0; rest &= rest - 1) {
      void* voter = meeting.operand[std::countr_zero(rest)];
      static_cast<VoteLane*>(voter)->ballot = ballot;
    }
  });
  return operand.ballot;
}

} // namespace

uint64_t shuffle(
    Shuffle shuffle,
    unsigned mask,
    uint64_t value,
    int argument,
    int width,
    const Site& site) {
  ShuffleLane operand{shuffle, argument, width, value, 0};
  meet(site, "shuffle", mask, &operand, &shuffle_lanes);
  return operand.result;
}

} // namespace emu

unsigned __ballot_sync(unsigned mask, int predicate, emu::Site site) {
  return emu::vote(mask, predicate, site);
}

int __any_sync(unsigned mask, int predicate, emu::Site site) {
  return emu::vote(mask, predicate, site) != 0;
}

int __all_sync(unsigned mask, int predicate, emu::Site site) {
  return emu::vote(mask, predicate, site) == mask;
}
