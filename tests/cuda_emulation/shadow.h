#pragma once

// Who has touched memory, to find accesses that nothing orders.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "access.h"
#include "block.h"

namespace emu {

// An earlier access that is not ordered with the present one.
struct Conflict {
  const char* access = nullptr; // what it was; null: there is none
  int64_t other = 0;            // thread of this block, or block
  bool other_block = false;
};

// Threads that have touched a byte, or a word whose bytes share the mark, since
// the last barrier.
class ThreadMark {
 public:
  bool stale() const {
    return time_ != running.block_time;
  }
  void refresh() {
    time_ = running.block_time;
  }
  Conflict touch(Access access);

 private:
  uint32_t time_; // of the block; everything is void at another time
  uint32_t write_warp_time_;
  uint32_t read_warp_time_;
  uint16_t writer_; // thread + 1; 0: none
  uint16_t reader_; // thread + 1 of one of them; 0: none
  bool atomic_writer_;
  bool many_lanes_; // of the reader's warp have read at read_warp_time_
  bool many_warps_; // have read

  bool ordered(int other, uint32_t warp_time, bool many_lanes) const;
};

// The same, and the blocks of the launch that have touched it.
class GridMark {
 public:
  bool stale() const {
    return launch_ != running.launch_start;
  }
  void refresh() {
    launch_ = running.launch_start;
  }
  Conflict touch(Access access);

 private:
  ThreadMark threads_;
  uint32_t launch_; // everything is void in another launch
  bool atomic_writer_;
  bool many_readers_;
  int64_t writer_; // block + 1; 0: none
  int64_t reader_;
};

// The marks of a range of memory: one for each word of 4 bytes, and one for
// each byte while a word's bytes differ. Offsets count from a multiple of 4.
template <class Mark>
class Shadow {
 public:
  explicit Shadow(size_t bytes)
      : count_(bytes / 4 + 2), words_(zeros<Word>(count_)) {}

  // The last conflict of the bytes touched.
  Conflict touch(size_t offset, size_t bytes, Access access) {
    Conflict conflict;
    const size_t end = offset + bytes;
    while (offset < end) {
      Word& word = words_[offset / 4];
      const bool whole = offset % 4 == 0 && end - offset >= 4;
      if (whole && !word.split) {
        keep(conflict, word.mark.touch(access));
        offset += 4;
        continue;
      }
      if (word.mark.stale()) {
        word = Word{};
        word.mark.refresh();
      }
      if (!word.split && !whole) {
        split(offset / 4);
      }
      const size_t word_end = (offset / 4 + 1) * 4;
      for (; offset < end && offset < word_end; ++offset) {
        Mark& mark = word.split ? bytes_[offset] : word.mark;
        keep(conflict, mark.touch(access));
      }
    }
    return conflict;
  }

 private:
  struct Word {
    Mark mark;
    bool split;
  };
  struct Free {
    void operator()(void* memory) const {
      std::free(memory);
    }
  };

  static void keep(Conflict& conflict, const Conflict& found) {
    if (found.access != nullptr) {
      conflict = found;
    }
  }

  // Pages of zeros, which cost nothing before they are touched.
  template <class T>
  static std::unique_ptr<T[], Free> zeros(size_t count) {
    return std::unique_ptr<T[], Free>(
        static_cast<T*>(std::calloc(count, sizeof(T))));
  }

  void split(size_t index) {
    if (bytes_ == nullptr) {
      bytes_ = zeros<Mark>(4 * count_);
    }
    for (size_t byte = 4 * index; byte < 4 * index + 4; ++byte) {
      bytes_[byte] = words_[index].mark;
    }
    words_[index].split = true;
  }

  size_t count_;
  std::unique_ptr<Word[], Free> words_;
  std::unique_ptr<Mark[], Free> bytes_;
};

inline bool ThreadMark::ordered(int other, uint32_t warp_time, bool many_lanes)
    const {
  return (other == running.thread && !many_lanes) ||
      (other / kWarpSize == running.warp && warp_time != running.warp_time);
}

inline Conflict ThreadMark::touch(Access access) {
  if (stale()) {
    *this = ThreadMark{};
    refresh();
  }
  const bool whole_warp = access == Access::kWarpRead;
  const bool atomic = access == Access::kAtomic;
  Conflict conflict;
  if (writer_ != 0 && !(atomic && atomic_writer_) &&
      !ordered(writer_ - 1, write_warp_time_, whole_warp)) {
    conflict = {"write", writer_ - 1};
  }
  if (access == Access::kRead || whole_warp) {
    const bool same_warp = (reader_ - 1) / kWarpSize == running.warp;
    if (reader_ != 0 && !same_warp) {
      many_warps_ = true;
    }
    const bool together =
        reader_ != 0 && same_warp && read_warp_time_ == running.warp_time;
    many_lanes_ = whole_warp ||
        (together && (many_lanes_ || reader_ - 1 != running.thread));
    reader_ = static_cast<uint16_t>(running.thread + 1);
    read_warp_time_ = running.warp_time;
    return conflict;
  }
  if (reader_ != 0 &&
      (many_warps_ || !ordered(reader_ - 1, read_warp_time_, many_lanes_))) {
    conflict = {"read", reader_ - 1};
  }
  writer_ = static_cast<uint16_t>(running.thread + 1);
  write_warp_time_ = running.warp_time;
  atomic_writer_ = atomic;
  return conflict;
}

inline Conflict GridMark::touch(Access access) {
  if (stale()) {
    *this = GridMark{};
    refresh();
  }
  const bool atomic = access == Access::kAtomic;
  const int64_t block = running.block + 1;
  Conflict conflict = threads_.touch(access);
  if (writer_ != 0 && writer_ != block && !(atomic && atomic_writer_)) {
    conflict = {"write", writer_ - 1, true};
  }
  if (access == Access::kRead || access == Access::kWarpRead) {
    many_readers_ |= reader_ != 0 && reader_ != block;
    reader_ = block;
    return conflict;
  }
  if (reader_ != 0 && (many_readers_ || reader_ != block)) {
    conflict = {"read", reader_ - 1, true};
  }
  writer_ = block;
  atomic_writer_ = atomic;
  return conflict;
}

} // namespace emu
