#include "async_copy.h"

#include <cstring>
#include <vector>

#include "access.h"
#include "block.h"

namespace emu {
namespace {

struct Copy {
  void* shared;
  const void* global;
  int bytes; // the others of the 16 are zero
  int group;
  const void* pc;
};

struct Queue {
  std::vector<Copy> copies;
  int group = 0; // of the copies not yet committed
};

Queue queues[kMaxThreads];

} // namespace

void queue_async_copy(
    void* shared,
    const void* global,
    int bytes,
    const void* pc) {
  check_space(shared, true, pc);
  check_space(global, false, pc);
  check_aligned(shared, 16, pc);
  check_aligned(global, 16, pc);
  if (bytes > 0) {
    check_access(global, bytes, Access::kRead, pc);
  }
  begin_async_write(shared, 16, pc);
  Queue& queue = queues[running.thread];
  queue.copies.push_back({shared, global, bytes, queue.group, pc});
}

void commit_async_copies() {
  ++queues[running.thread].group;
}

void wait_async_copies(int newest_groups) {
  Queue& queue = queues[running.thread];
  const int done = queue.group - newest_groups;
  auto copy = queue.copies.begin();
  for (; copy != queue.copies.end() && copy->group < done; ++copy) {
    end_async_write(copy->shared, 16, copy->pc);
    auto* target = static_cast<unsigned char*>(copy->shared);
    std::memcpy(target, copy->global, copy->bytes);
    std::memset(target + copy->bytes, 0, 16 - copy->bytes);
  }
  queue.copies.erase(queue.copies.begin(), copy);
}

void end_async_copies() {
  Queue& queue = queues[running.thread];
  queue.copies.clear();
  queue.group = 0;
}

void drop_async_copies() {
  for (Queue& queue : queues) {
    queue.copies.clear();
    queue.group = 0;
  }
}

} // namespace emu
