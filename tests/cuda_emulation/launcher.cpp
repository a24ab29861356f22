#include "launcher.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "block.h"
#include "report.h"
#include "shared_memory.h"

namespace emu {
namespace {

// Limits of every compute capability from 3.0 on.
constexpr unsigned kMaxGridX = 2147483647;
constexpr unsigned kMaxGridYZ = 65535;
constexpr unsigned kMaxBlockZ = 64;

std::string describe(const char* what, dim3 size) {
  return std::string(what) + " (" + std::to_string(size.x) + ", " +
      std::to_string(size.y) + ", " + std::to_string(size.z) + ")";
}

bool reject(const std::string& what) {
  report(Kind::kLaunch, what, nullptr);
  return false;
}

bool acceptable(dim3 grid, dim3 block, size_t shared_bytes) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > kMaxGridX ||
      grid.y > kMaxGridYZ || grid.z > kMaxGridYZ) {
    return reject(describe("grid", grid));
  }
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || block.z > kMaxBlockZ) {
    return reject(describe("block", block));
  }
  if (shared_bytes > options().max_shared_bytes) {
    return reject(
        "shared memory of " + std::to_string(shared_bytes) +
        " bytes, at most " + std::to_string(options().max_shared_bytes));
  }
  return true;
}

std::vector<int64_t> block_order(int64_t count) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), int64_t{0});
  if (options().block_order == Order::kReversed) {
    std::reverse(order.begin(), order.end());
  } else if (options().block_order == Order::kShuffled) {
    std::shuffle(order.begin(), order.end(), std::mt19937(options().seed));
  }
  return order;
}

} // namespace

Options& options() {
  static Options options;
  return options;
}

int launch(
    dim3 grid,
    dim3 block,
    size_t shared_bytes,
    void (*kernel)(void*),
    void* argument,
    size_t argument_bytes) {
  begin_launch_reports();
  if (!acceptable(grid, block, shared_bytes)) {
    return kInvalidConfiguration;
  }
  begin_launch();
  running.arguments = reinterpret_cast<uintptr_t>(argument);
  running.arguments_bytes = argument_bytes;
  begin_shared_memory(shared_bytes);
  const int64_t count = int64_t{grid.x} * grid.y * grid.z;
  for (const int64_t index : block_order(count)) {
    const uint3 block_index{
        static_cast<unsigned>(index % grid.x),
        static_cast<unsigned>(index / grid.x % grid.y),
        static_cast<unsigned>(index / (int64_t{grid.x} * grid.y))};
    if (!run_block(grid, block, block_index, kernel, argument)) {
      break;
    }
  }
  return launch_failed() ? kLaunchFailure : 0;
}

} // namespace emu
