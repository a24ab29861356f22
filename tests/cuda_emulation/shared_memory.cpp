#include "shared_memory.h"

#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>

#include "block.h"
#include "launcher.h"
#include "report.h"
#include "shadow.h"
#include "statistics.h"

namespace emu {
namespace {

// Large enough for every GPU, and so much on either side for wrong offsets.
constexpr size_t kCapacity = 256 * 1024;
constexpr size_t kRedZone = 64 * 1024;

alignas(128) unsigned char memory[kRedZone + kCapacity + kRedZone];
size_t size = 0; // bytes that the launch asked for

// The contents of a word.
struct Word {
  uint32_t block_start; // of the block that the rest is about
  uint8_t written;      // bit i: byte i
  bool copying;         // an asynchronous copy has begun and not ended
};

Word words[kCapacity / 4];

Shadow<ThreadMark>& shadow() {
  static Shadow<ThreadMark> shadow(kCapacity);
  return shadow;
}

Word& word_at(size_t offset) {
  Word& word = words[offset / 4];
  if (word.block_start != running.block_start) {
    word = {running.block_start, 0, false};
  }
  return word;
}

// Bits of the bytes of offset's word that lie in [offset, end).
uint8_t byte_bits(size_t offset, size_t end) {
  const size_t first = offset % 4;
  const size_t count = end - offset < 4 - first ? end - offset : 4 - first;
  return static_cast<uint8_t>(((1u << count) - 1) << first);
}

size_t offset_of(uintptr_t address) {
  return address - reinterpret_cast<uintptr_t>(shared_memory());
}

std::string describe(const char* verb, size_t offset, size_t bytes) {
  std::ostringstream text;
  const auto position = static_cast<int64_t>(offset);
  text << verb << " of " << bytes << " bytes at shared memory "
       << (position < 0 ? "- " : "+ ") << std::abs(position) << " (of " << size
       << ")";
  return text.str();
}

// Reports an access outside, to be undone by nobody.
bool inside(size_t offset, size_t bytes, const char* verb, const void* pc) {
  if (offset <= size && bytes <= size - offset) {
    return true;
  }
  report(Kind::kOutOfBounds, describe(verb, offset, bytes), pc);
  stop_launch();
}

void check_order(size_t offset, size_t bytes, Access access, const void* pc) {
  const Conflict conflict = shadow().touch(offset, bytes, access);
  if (conflict.access != nullptr) {
    report(
        Kind::kRace,
        describe(verb(access), offset, bytes) + ", not ordered with a " +
            conflict.access + " by thread " + std::to_string(conflict.other),
        pc);
  }
}

} // namespace

unsigned char* shared_memory() {
  return memory + kRedZone;
}

void begin_shared_memory(size_t bytes) {
  size = bytes;
  // Most likely to be noticed: NaN in every type.
  std::memset(shared_memory(), 0xff, size);
}

bool near_shared_memory(uintptr_t address) {
  return address - reinterpret_cast<uintptr_t>(memory) < sizeof memory;
}

void check_shared_access(
    uintptr_t address,
    size_t bytes,
    Access access,
    const void* pc) {
  const size_t begin = offset_of(address);
  inside(begin, bytes, verb(access), pc);
  const size_t end = begin + bytes;
  const bool reads = access != Access::kWrite;
  bool copying = false;
  bool unwritten = false;
  for (size_t offset = begin; offset < end; offset = (offset / 4 + 1) * 4) {
    Word& word = word_at(offset);
    const uint8_t bits = byte_bits(offset, end);
    copying |= word.copying;
    unwritten |= reads && (word.written & bits) != bits;
    word.written |= reads ? 0 : bits;
  }
  if (copying) {
    report(
        Kind::kAsyncCopy,
        describe(verb(access), begin, bytes) +
            ", the target of an asynchronous copy",
        pc);
  } else if (unwritten) {
    report(Kind::kUninitialised, describe(verb(access), begin, bytes), pc);
  }
  check_order(begin, bytes, access, pc);
  if (options().statistics) {
    record(Space::kShared, address, bytes, access, pc);
  }
}

void begin_async_write(const void* address, size_t bytes, const void* pc) {
  const size_t begin = offset_of(reinterpret_cast<uintptr_t>(address));
  inside(begin, bytes, "asynchronous copy", pc);
  bool copying = false;
  for (size_t offset = begin; offset < begin + bytes; offset += 4) {
    Word& word = word_at(offset);
    copying |= word.copying;
    word.copying = true;
  }
  if (copying) {
    report(
        Kind::kAsyncCopy,
        "two at once to shared memory + " + std::to_string(begin),
        pc);
  }
  check_order(begin, bytes, Access::kWrite, pc);
}

void end_async_write(const void* address, size_t bytes, const void* pc) {
  const size_t begin = offset_of(reinterpret_cast<uintptr_t>(address));
  for (size_t offset = begin; offset < begin + bytes; offset += 4) {
    Word& word = word_at(offset);
    word.copying = false;
    word.written = 0xf;
  }
  check_order(begin, bytes, Access::kWrite, pc);
}

} // namespace emu
