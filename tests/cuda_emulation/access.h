#pragma once

#include <cstddef>

namespace emu {

enum class Access {
  kRead,
  kWrite,
  kAtomic,
  kWarpRead, // for all lanes of the warp: ldmatrix
};

const char* verb(Access access);

// The running thread accesses memory; `pc` is where the access returns to.
void check_access(
    const void* address,
    size_t bytes,
    Access access,
    const void* pc);
// An operand that the instruction takes from shared memory, or from global.
void check_space(const void* address, bool shared, const void* pc);
void check_aligned(const void* address, size_t alignment, const void* pc);

// From begin to end of an asynchronous copy nobody may touch its target.
void begin_async_write(const void* address, size_t bytes, const void* pc);
void end_async_write(const void* address, size_t bytes, const void* pc);

} // namespace emu
