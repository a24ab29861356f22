#pragma once

#include <cstddef>
#include <cstdint>

#include "access.h"

namespace emu {

// A block's dynamic shared memory; undefined at the block's start.
unsigned char* shared_memory();
void begin_shared_memory(size_t bytes);

// In shared memory or so near to it that nothing else can be meant?
bool near_shared_memory(uintptr_t address);
void check_shared_access(
    uintptr_t address,
    size_t bytes,
    Access access,
    const void* pc);

} // namespace emu
