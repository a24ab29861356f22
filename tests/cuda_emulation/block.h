#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>

#include "vector_types.h"

namespace emu {

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;

// Where a kernel waits: two calls on one line differ in their column.
using Site = std::source_location;
bool same_site(const Site& a, const Site& b);
std::string describe_site(const Site& site);

// The running thread, for checks; times are counted from the process's start.
struct Running {
  int thread = 0; // in the block
  int lane = 0;
  int warp = 0;
  int64_t block = 0;         // in the grid
  uint32_t launch_start = 1; // block time at which the launch began
  uint32_t block_start = 1;  // block time at which the block began
  uint32_t block_time = 1;   // advances at every __syncthreads
  uint32_t warp_time = 1;    // advances at every __syncwarp of the whole warp
  bool inside = false;       // a kernel is running
  uint32_t accesses = 0;     // to memory since the thread last waited
  uintptr_t stacks = 0;      // where all threads' stacks lie
  size_t stacks_bytes = 0;
  uintptr_t arguments = 0; // where each thread copies its arguments from
  size_t arguments_bytes = 0;
};
extern Running running;
std::string describe_running_thread();

// Runs a block: kernel(argument) once per thread. False: stopped by
// stop_launch.
bool run_block(
    dim3 grid,
    dim3 block,
    uint3 block_index,
    void (*kernel)(void*),
    void* argument);
void begin_launch();

// Abandons the running block; called by one of its threads.
[[noreturn]] void stop_launch();

// What the lanes of a mask brought to a collective; null for the others.
struct Meeting {
  unsigned mask;
  void* operand[kWarpSize];
};

// Blocks until all lanes of `mask` have called this for one site; then the last
// one calls act(meeting), and all go on.
void meet(
    const Site& site,
    const char* what,
    unsigned mask,
    void* operand,
    void (*act)(const Meeting&));

__attribute__((const)) uint3 thread_index() noexcept;
__attribute__((const)) uint3 block_index() noexcept;
__attribute__((const)) dim3 block_dim() noexcept;
__attribute__((const)) dim3 grid_dim() noexcept;

} // namespace emu

#define threadIdx (::emu::thread_index())
#define blockIdx (::emu::block_index())
#define blockDim (::emu::block_dim())
#define gridDim (::emu::grid_dim())

void __syncthreads(emu::Site site = emu::Site::current());
void __syncwarp(
    unsigned mask = 0xffffffffu,
    emu::Site site = emu::Site::current());
