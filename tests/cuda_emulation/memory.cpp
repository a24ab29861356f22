#include "memory.h"

#include <algorithm>

namespace emu {
namespace {

constexpr size_t kMaxSharedBytes = 256 * 1024;
alignas(128) unsigned char shared[kMaxSharedBytes];

} // namespace

unsigned char* shared_memory() {
  return shared;
}

void begin_launch_memory(size_t) {
  // Not zero: a kernel must write before it reads.
  std::fill_n(shared, kMaxSharedBytes, static_cast<unsigned char>(0xff));
}

void check_access(const void*, size_t, Access, const void*) {}
void check_aligned(const void*, size_t, const void*) {}
void begin_async_write(const void*, size_t, const void*) {}
void end_async_write(const void*, size_t, const void*) {}

} // namespace emu
