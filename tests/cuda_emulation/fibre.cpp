#include "fibre.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <new>

namespace emu {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kStackBytes = 64 * 1024 + kPage;

} // namespace

void Fibre::prepare(void* stack, size_t bytes, Entry entry, int index) {
  stack_ = stack;
  stack_bytes_ = bytes;
  entry_ = entry;
  index_ = index;
}

void Fibre::switch_to(Fibre& from, Fibre& to) {
  if (_setjmp(from.state_) == 0) {
    if (to.stack_ != nullptr) {
      to.start();
    }
    _longjmp(to.state_, 1);
  }
}

void Fibre::start() {
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stack_;
  context.uc_stack.ss_size = stack_bytes_;
  context.uc_link = nullptr;
  stack_ = nullptr;
  // makecontext passes ints only.
  const auto self = reinterpret_cast<uintptr_t>(this);
  makecontext(
      &context,
      reinterpret_cast<void (*)()>(&Fibre::trampoline),
      2,
      static_cast<unsigned>(self >> 32),
      static_cast<unsigned>(self));
  setcontext(&context);
}

void Fibre::trampoline(unsigned high, unsigned low) {
  const auto self = reinterpret_cast<Fibre*>(
      static_cast<uintptr_t>(high) << 32 | static_cast<uintptr_t>(low));
  for (;;) {
    self->entry_(self->index_);
  }
}

Stacks::Stacks(int count)
    : total_bytes_(count * kStackBytes) {
  void* memory = mmap(
      nullptr,
      total_bytes_,
      PROT_READ | PROT_WRITE,
      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
      -1,
      0);
  if (memory == MAP_FAILED) {
    throw std::bad_alloc();
  }
  memory_ = static_cast<unsigned char*>(memory);
  for (int index = 0; index < count; ++index) {
    mprotect(memory_ + index * kStackBytes, kPage, PROT_NONE);
  }
}

Stacks::~Stacks() {
  munmap(memory_, total_bytes_);
}

unsigned char* Stacks::stack(int index) const {
  return memory_ + index * kStackBytes + kPage;
}

size_t Stacks::bytes(int index) const {
  // Frames at the same depth would all fall into the same sets of the cache.
  const size_t colour = index % 32 * 192;
  return kStackBytes - kPage - colour;
}

} // namespace emu
