#include "memory_functions.h"

#include "access.h"
#include "block.h"

namespace emu {

void* copy_memory(void* target, const void* source, size_t bytes) {
  if (running.inside && bytes > 0) {
    const void* pc = __builtin_return_address(0);
    check_access(source, bytes, Access::kRead, pc);
    check_access(target, bytes, Access::kWrite, pc);
  }
  return __builtin_memmove(target, source, bytes);
}

void* set_memory(void* target, int byte, size_t bytes) {
  if (running.inside && bytes > 0) {
    check_access(target, bytes, Access::kWrite, __builtin_return_address(0));
  }
  return __builtin_memset(target, byte, bytes);
}

} // namespace emu
