#pragma once

// Global memory: the buffers that a kernel may touch.

#include <cstddef>
#include <cstdint>
#include <string>

#include "access.h"

namespace emu {

// While it lives, kernels may access [address, address + bytes); where buffers
// overlap they are one, written only if all may be.
class Registration {
 public:
  Registration(
      std::string name,
      const void* address,
      size_t bytes,
      bool read_only);
  ~Registration();
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;

 private:
  int64_t id_;
};

// Memory between red zones: what misses it misses every buffer.
class Arena {
 public:
  Arena(std::string name, size_t bytes, bool read_only = false);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  void* data() const {
    return data_;
  }

 private:
  unsigned char* memory_;
  unsigned char* data_;
  Registration registration_;
};

void check_global_access(
    uintptr_t address,
    size_t bytes,
    Access access,
    const void* pc);

} // namespace emu
