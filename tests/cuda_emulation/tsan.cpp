// The calls that g++ puts before every load and store of a kernel unit under
// -fsanitize=thread. Host code of such a unit makes them too: it is not
// checked.

#include <cstddef>
#include <cstdint>

#include "access.h"
#include "block.h"

#define EMU_HOOK extern "C" __attribute__((visibility("hidden")))

namespace {

inline void
hook(const void* address, size_t bytes, emu::Access access, const void* pc) {
  if (emu::running.inside) {
    emu::check_access(address, bytes, access, pc);
  }
}

// A thread's stack or what its arguments are copied from: g++ copies structures
// of words there 16 bytes at a time, wherever they lie.
bool host_memory(const void* address) {
  const auto value = reinterpret_cast<uintptr_t>(address);
  const emu::Running& running = emu::running;
  return value - running.stacks < running.stacks_bytes ||
      value - running.arguments < running.arguments_bytes;
}

// Of a type that is aligned to its size.
inline void aligned_hook(
    const void* address,
    size_t bytes,
    emu::Access access,
    const void* pc) {
  if (emu::running.inside) {
    if (!host_memory(address)) {
      emu::check_aligned(address, bytes, pc);
    }
    emu::check_access(address, bytes, access, pc);
  }
}

} // namespace

#define EMU_ACCESS(NAME, HOOK, BYTES, ACCESS)                               \
  EMU_HOOK void __tsan_##NAME##BYTES(void* address) {                       \
    HOOK(address, BYTES, emu::Access::ACCESS, __builtin_return_address(0)); \
  }
#define EMU_ACCESSES(BYTES)                               \
  EMU_ACCESS(read, aligned_hook, BYTES, kRead)            \
  EMU_ACCESS(write, aligned_hook, BYTES, kWrite)          \
  EMU_ACCESS(volatile_read, aligned_hook, BYTES, kRead)   \
  EMU_ACCESS(volatile_write, aligned_hook, BYTES, kWrite) \
  EMU_ACCESS(unaligned_read, hook, BYTES, kRead)          \
  EMU_ACCESS(unaligned_write, hook, BYTES, kWrite)        \
  EMU_ACCESS(unaligned_volatile_read, hook, BYTES, kRead) \
  EMU_ACCESS(unaligned_volatile_write, hook, BYTES, kWrite)

EMU_ACCESSES(1)
EMU_ACCESSES(2)
EMU_ACCESSES(4)
EMU_ACCESSES(8)
EMU_ACCESSES(16)

EMU_HOOK void __tsan_read_range(void* address, size_t bytes) {
  hook(address, bytes, emu::Access::kRead, __builtin_return_address(0));
}

EMU_HOOK void __tsan_write_range(void* address, size_t bytes) {
  hook(address, bytes, emu::Access::kWrite, __builtin_return_address(0));
}

EMU_HOOK void __tsan_init() {}
EMU_HOOK void __tsan_func_entry(void*) {}
EMU_HOOK void __tsan_func_exit() {}
EMU_HOOK void __tsan_vptr_update(void**, void*) {}

// Of the host code of a kernel unit: guards of static variables.
EMU_HOOK uint8_t __tsan_atomic8_load(const volatile uint8_t* address, int) {
  return __atomic_load_n(address, __ATOMIC_SEQ_CST);
}
