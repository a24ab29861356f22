#include "access.h"

#include <cstdint>
#include <string>

#include "block.h"
#include "buffers.h"
#include "report.h"
#include "shared_memory.h"

namespace emu {
namespace {

// A thread that accesses memory this often without waiting for others waits for
// them in a loop, which a fibre does not survive.
constexpr uint32_t kSpinning = 1u << 22;

} // namespace

const char* verb(Access access) {
  switch (access) {
    case Access::kRead:
    case Access::kWarpRead:
      return "read";
    case Access::kWrite:
      return "write";
    case Access::kAtomic:
      return "atomic update";
  }
  return "access";
}

void check_access(
    const void* pointer,
    size_t bytes,
    Access access,
    const void* pc) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (address - running.stacks < running.stacks_bytes) {
    return;
  }
  if (++running.accesses == kSpinning) {
    report(Kind::kDeadlock, "the thread waits for others in a loop", pc);
    stop_launch();
  }
  if (near_shared_memory(address)) {
    check_shared_access(address, bytes, access, pc);
  } else {
    check_global_access(address, bytes, access, pc);
  }
}

void check_space(const void* address, bool shared, const void* pc) {
  if (near_shared_memory(reinterpret_cast<uintptr_t>(address)) != shared) {
    report(
        Kind::kOutOfBounds,
        std::string("operand outside ") + (shared ? "shared" : "global") +
            " memory",
        pc);
    stop_launch();
  }
}

void check_aligned(const void* address, size_t alignment, const void* pc) {
  const auto value = reinterpret_cast<uintptr_t>(address);
  if (value % alignment != 0) {
    report(
        Kind::kMisaligned,
        "access of " + std::to_string(alignment) + " bytes at an address " +
            std::to_string(value % alignment) + " bytes after a multiple",
        pc);
    stop_launch();
  }
}

} // namespace emu
