#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace emu {

// One execution context with its own stack. A fibre runs `entry` again and
// again: whenever entry returns, the fibre has been switched to by its owner
// once more.
class Fibre {
 public:
  using Entry = void (*)(int index);

  // The next switch starts `entry(index)` on the stack [stack, stack + bytes).
  void prepare(void* stack, size_t bytes, Entry entry, int index);

  // Suspends `from` and runs `to` where it was suspended, or from its start.
  static void switch_to(Fibre& from, Fibre& to);

 private:
  std::jmp_buf state_;
  // Where a prepared fibre begins; it is entered by setcontext, which is slow,
  // once, and by longjmp ever after.
  void* stack_ = nullptr;
  size_t stack_bytes_ = 0;
  Entry entry_ = nullptr;
  int index_ = 0;

  void start();
  static void trampoline(unsigned high, unsigned low);
};

// Stacks with a guard page below each, in one address range.
class Stacks {
 public:
  explicit Stacks(int count);
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  unsigned char* stack(int index) const;
  size_t bytes(int index) const;

  uintptr_t begin() const {
    return reinterpret_cast<uintptr_t>(memory_);
  }
  size_t total_bytes() const {
    return total_bytes_;
  }

 private:
  unsigned char* memory_;
  size_t total_bytes_;
};

} // namespace emu
