#pragma once

namespace emu {

// Copies queued by the running thread, performed at its wait and not before.
void queue_async_copy(
    void* shared,
    const void* global,
    int bytes,
    const void* pc);
void commit_async_copies();
void wait_async_copies(int newest_groups);
// The running thread returns: what it did not wait for is never seen.
void end_async_copies();
// All threads' copies, when a launch is stopped.
void drop_async_copies();

} // namespace emu
