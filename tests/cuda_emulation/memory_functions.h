#pragma once

// memcpy, memmove and memset of kernels: g++ hides from -fsanitize=thread what
// they touch, unless it is one access.

#include <cstddef>
#include <cstring>

#define EMU_INLINE inline __attribute__((always_inline))

namespace emu {

void* copy_memory(void* target, const void* source, size_t bytes);
void* set_memory(void* target, int byte, size_t bytes);

} // namespace emu

EMU_INLINE void* emu_memcpy(void* target, const void* source, size_t bytes) {
  const bool access =
      bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8 || bytes == 16;
  if (__builtin_constant_p(bytes) && access) {
    return __builtin_memcpy(target, source, bytes);
  }
  return emu::copy_memory(target, source, bytes);
}

EMU_INLINE void* emu_memmove(void* target, const void* source, size_t bytes) {
  return emu::copy_memory(target, source, bytes);
}

EMU_INLINE void* emu_memset(void* target, int byte, size_t bytes) {
  return emu::set_memory(target, byte, bytes);
}

namespace std {
using ::emu_memcpy;
using ::emu_memmove;
using ::emu_memset;
} // namespace std

#define memcpy emu_memcpy
#define memmove emu_memmove
#define memset emu_memset
