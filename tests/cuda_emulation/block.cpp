#include "block.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <vector>

#include "async_copy.h"
#include "fibre.h"
#include "launcher.h"
#include "report.h"
#include "statistics.h"

namespace emu {

Running running;

namespace {

enum class State { kReady, kBarrier, kCollective, kReturned };

struct Thread {
  Fibre fibre;
  uint3 index;
  State state;
  Site site;
  // Of the collective it waits in.
  const char* what;
  unsigned mask;
  void* operand;
};

// Bit p of the ready mask is the p-th lane in the order in which lanes run.
struct Warp {
  unsigned ready;
  unsigned live;          // lanes
  unsigned meeting_lanes; // lanes that wait in a collective
  uint32_t time;
};

struct Machine {
  Stacks stacks{kMaxThreads};
  Fibre scheduler;
  Thread threads[kMaxThreads];
  Warp warps[kMaxThreads / kWarpSize];
  int prepared = 0; // threads whose fibres are at their start
  int thread_count = 0;
  int warp_count = 0;
  int lane_at[kWarpSize];     // by position
  int position_of[kWarpSize]; // by lane
  std::vector<int> warp_at;   // by position
  int warp_position = 0;
  int live = 0;
  bool stopped = false;
  dim3 grid;
  dim3 block;
  uint3 block_index;
  void (*kernel)(void*);
  void* argument;
};

Machine the_machine;

Machine& machine() {
  return the_machine;
}

Thread* current = nullptr;

void order(std::vector<int>& items, std::mt19937& random) {
  std::iota(items.begin(), items.end(), 0);
  if (options().thread_order == Order::kReversed) {
    std::reverse(items.begin(), items.end());
  } else if (options().thread_order == Order::kShuffled) {
    std::shuffle(items.begin(), items.end(), random);
  }
}

void choose_order(Machine& m, int64_t block) {
  std::mt19937 random(options().seed + static_cast<unsigned>(block));
  std::vector<int> lanes(kWarpSize);
  order(lanes, random);
  for (int position = 0; position < kWarpSize; ++position) {
    m.lane_at[position] = lanes[position];
    m.position_of[lanes[position]] = position;
  }
  m.warp_at.resize(m.warp_count);
  order(m.warp_at, random);
}

void make_ready(Machine& m, int thread) {
  m.threads[thread].state = State::kReady;
  m.warps[thread / kWarpSize].ready |= 1u << m.position_of[thread % kWarpSize];
}

// What the threads of a block that can't go on wait for.
struct Standing {
  const Thread* barrier = nullptr;
  const Thread* other_barrier = nullptr; // of another site
  const Thread* collective = nullptr;
  const Thread* missing_at_barrier = nullptr; // a lane that it waits for
};

Standing take_stock(const Machine& m) {
  Standing standing;
  for (int i = 0; i < m.thread_count; ++i) {
    const Thread& thread = m.threads[i];
    if (thread.state == State::kCollective) {
      standing.collective = &thread;
      const int first = i / kWarpSize * kWarpSize;
      for (int lane = 0; lane < kWarpSize; ++lane) {
        if ((thread.mask >> lane & 1) != 0 && first + lane < m.thread_count &&
            m.threads[first + lane].state == State::kBarrier) {
          standing.missing_at_barrier = &m.threads[first + lane];
        }
      }
    } else if (thread.state == State::kBarrier) {
      if (standing.barrier == nullptr) {
        standing.barrier = &thread;
      } else if (!same_site(standing.barrier->site, thread.site)) {
        standing.other_barrier = &thread;
      }
    }
  }
  return standing;
}

std::string describe_collective(const Thread& thread) {
  std::ostringstream text;
  text << thread.what << " of mask 0x" << std::hex << thread.mask << " ("
       << describe_site(thread.site) << ")";
  return text.str();
}

void end_traffic(const Machine& m) {
  if (options().statistics) {
    for (int warp = 0; warp < m.warp_count; ++warp) {
      end_traffic_of_warp(warp);
    }
  }
}

// Nobody can run: opens the barrier, or says why it stays closed.
bool open_barrier(Machine& m) {
  const Standing standing = take_stock(m);
  std::ostringstream what;
  Kind kind = Kind::kBarrierDivergence;
  if (standing.missing_at_barrier != nullptr) {
    kind = Kind::kDeadlock;
    what << describe_collective(*standing.collective)
         << " waits for lanes that wait at the barrier of "
         << describe_site(standing.missing_at_barrier->site);
  } else if (standing.collective != nullptr) {
    kind = Kind::kCollectiveDivergence;
    what << describe_collective(*standing.collective)
         << " waits for lanes that never come";
  } else if (standing.other_barrier != nullptr) {
    what << "threads wait at " << describe_site(standing.barrier->site)
         << " and at " << describe_site(standing.other_barrier->site);
  } else if (m.live < m.thread_count) {
    what << m.thread_count - m.live << " of " << m.thread_count
         << " threads returned before the barrier of "
         << describe_site(standing.barrier->site);
  } else {
    ++running.block_time;
    end_traffic(m);
    for (int i = 0; i < m.thread_count; ++i) {
      make_ready(m, i);
    }
    return true;
  }
  report(kind, what.str(), nullptr);
  return false;
}

// The next thread to run, or null at the end of the block.
Thread* next_thread(Machine& m) {
  for (;;) {
    for (int i = 0; i < m.warp_count; ++i) {
      const int warp = m.warp_at[m.warp_position];
      if (m.warps[warp].ready != 0) {
        return &m.threads
                    [warp * kWarpSize +
                     m.lane_at[std::countr_zero(m.warps[warp].ready)]];
      }
      m.warp_position = (m.warp_position + 1) % m.warp_count;
    }
    if (m.live == 0) {
      end_traffic(m);
      return nullptr;
    }
    if (!open_barrier(m)) {
      m.stopped = true;
      return nullptr;
    }
  }
}

void enter(Machine& m, Thread* thread) {
  current = thread;
  running.thread = static_cast<int>(thread - m.threads);
  running.lane = running.thread % kWarpSize;
  running.warp = running.thread / kWarpSize;
  running.warp_time = m.warps[running.warp].time;
  running.accesses = 0;
}

// Suspends the running thread, whose ready bit has been cleared.
void suspend(Machine& m) {
  Thread* self = current;
  Thread* next = next_thread(m);
  if (next == nullptr) {
    Fibre::switch_to(self->fibre, m.scheduler);
  } else if (next != self) {
    enter(m, next);
    Fibre::switch_to(self->fibre, next->fibre);
  } else {
    enter(m, self);
  }
}

void clear_ready(Machine& m) {
  m.warps[running.warp].ready &= ~(1u << m.position_of[running.lane]);
}

void run_thread(int) {
  Machine& m = machine();
  m.kernel(m.argument);
  end_async_copies();
  current->state = State::kReturned;
  clear_ready(m);
  m.warps[running.warp].live &= ~(1u << running.lane);
  --m.live;
  suspend(m);
}

void prepare_threads(Machine& m, int count) {
  for (; m.prepared < count; ++m.prepared) {
    m.threads[m.prepared].fibre.prepare(
        m.stacks.stack(m.prepared),
        m.stacks.bytes(m.prepared),
        &run_thread,
        m.prepared);
  }
}

void reset_threads(Machine& m) {
  m.thread_count = static_cast<int>(m.block.x * m.block.y * m.block.z);
  m.warp_count = (m.thread_count + kWarpSize - 1) / kWarpSize;
  m.live = m.thread_count;
  m.warp_position = 0;
  m.stopped = false;
  choose_order(m, running.block);
  for (int warp = 0; warp < m.warp_count; ++warp) {
    m.warps[warp] = {0, 0, 0, 1};
  }
  for (int i = 0; i < m.thread_count; ++i) {
    const unsigned x = i % m.block.x;
    const unsigned y = i / m.block.x % m.block.y;
    const unsigned z = i / (m.block.x * m.block.y);
    m.threads[i].index = {x, y, z};
    m.warps[i / kWarpSize].live |= 1u << i % kWarpSize;
    make_ready(m, i);
  }
}

} // namespace

bool same_site(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
      (a.file_name() == b.file_name() ||
       std::strcmp(a.file_name(), b.file_name()) == 0);
}

std::string describe_site(const Site& site) {
  const char* slash = std::strrchr(site.file_name(), '/');
  std::ostringstream text;
  text << (slash == nullptr ? site.file_name() : slash + 1) << ":"
       << site.line() << ":" << site.column();
  return text.str();
}

std::string describe_running_thread() {
  if (!running.inside) {
    return "";
  }
  const uint3 block = block_index();
  const uint3 thread = thread_index();
  std::ostringstream text;
  text << "; block (" << block.x << ", " << block.y << ", " << block.z
       << "), thread (" << thread.x << ", " << thread.y << ", " << thread.z
       << ")";
  return text.str();
}

void begin_launch() {
  running.stacks = machine().stacks.begin();
  running.stacks_bytes = machine().stacks.total_bytes();
  ++running.block_time;
  running.launch_start = running.block_time;
}

bool run_block(
    dim3 grid,
    dim3 block,
    uint3 block_index,
    void (*kernel)(void*),
    void* argument) {
  Machine& m = machine();
  m.grid = grid;
  m.block = block;
  m.block_index = block_index;
  m.kernel = kernel;
  m.argument = argument;
  running.block =
      (static_cast<int64_t>(block_index.z) * grid.y + block_index.y) * grid.x +
      block_index.x;
  ++running.block_time;
  running.block_start = running.block_time;
  reset_threads(m);
  prepare_threads(m, m.thread_count);
  running.inside = true;
  enter(m, next_thread(m));
  Fibre::switch_to(m.scheduler, current->fibre);
  running.inside = false;
  if (m.stopped) {
    // Fibres were left in the middle of the kernel.
    m.prepared = 0;
    drop_async_copies();
  }
  return !m.stopped;
}

void stop_launch() {
  Machine& m = machine();
  m.stopped = true;
  Fibre::switch_to(current->fibre, m.scheduler);
  __builtin_unreachable();
}

void meet(
    const Site& site,
    const char* what,
    unsigned mask,
    void* operand,
    void (*act)(const Meeting&)) {
  Machine& m = machine();
  Thread& self = *current;
  self.site = site;
  self.what = what;
  self.mask = mask;
  self.operand = operand;
  if ((mask >> running.lane & 1) == 0) {
    report(
        Kind::kCollectiveMask,
        describe_collective(self) + " is called by lane " +
            std::to_string(running.lane) + ", which is not in its mask",
        nullptr);
    stop_launch();
  }
  Warp& warp = m.warps[running.warp];
  Thread* lanes = m.threads + running.warp * kWarpSize;
  warp.meeting_lanes |= 1u << running.lane;
  if ((warp.meeting_lanes & mask) != mask) {
    self.state = State::kCollective;
    clear_ready(m);
    suspend(m);
    return;
  }
  Meeting meeting{mask, {}};
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    if (lanes[lane].mask != mask || lanes[lane].what != what ||
        !same_site(lanes[lane].site, site)) {
      report(
          Kind::kCollectiveDivergence,
          "lane " + std::to_string(running.lane) + " is in " +
              describe_collective(self) + ", lane " + std::to_string(lane) +
              " in " + describe_collective(lanes[lane]),
          nullptr);
      stop_launch();
    }
    meeting.operand[lane] = lanes[lane].operand;
  }
  act(meeting);
  warp.meeting_lanes &= ~mask;
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    make_ready(m, running.warp * kWarpSize + std::countr_zero(rest));
  }
}

uint3 thread_index() noexcept {
  return current->index;
}
uint3 block_index() noexcept {
  return machine().block_index;
}
dim3 block_dim() noexcept {
  return machine().block;
}
dim3 grid_dim() noexcept {
  return machine().grid;
}

} // namespace emu

void __syncthreads(emu::Site site) {
  emu::Machine& m = emu::machine();
  emu::current->state = emu::State::kBarrier;
  emu::current->site = site;
  emu::clear_ready(m);
  emu::suspend(m);
}

void __syncwarp(unsigned mask, emu::Site site) {
  emu::meet(site, "__syncwarp", mask, nullptr, [](const emu::Meeting& meeting) {
    emu::Warp& warp = emu::machine().warps[emu::running.warp];
    if ((warp.live & ~meeting.mask) == 0) {
      emu::running.warp_time = ++warp.time;
      if (emu::options().statistics) {
        emu::end_traffic_of_warp(emu::running.warp);
      }
    }
  });
}
