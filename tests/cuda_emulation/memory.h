#pragma once

#include <cstddef>
#include <cstdint>

namespace emu {

// A block's dynamic shared memory. Its contents are undefined at the start.
unsigned char* shared_memory();
void begin_launch_memory(size_t shared_bytes);

enum class Access {
  kRead,
  kWrite,
  kAtomic,
  kWarpRead, // for all lanes of the warp: ldmatrix
};

// The running thread accesses memory; `pc` is the instruction after.
void check_access(
    const void* address,
    size_t bytes,
    Access access,
    const void* pc);
void check_aligned(const void* address, size_t alignment, const void* pc);

// From begin to end of an asynchronous copy nobody may touch its target.
void begin_async_write(const void* address, size_t bytes, const void* pc);
void end_async_write(const void* address, size_t bytes, const void* pc);

} // namespace emu
