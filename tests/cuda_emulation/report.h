#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace emu {

enum class Kind {
  kBarrierDivergence,    // threads wait at different barriers, or some returned
  kCollectiveDivergence, // lanes of a mask never meet at one collective
  kCollectiveMask,       // a mask without its caller, or a source lane outside
  kDeadlock,             // threads wait for each other at different things
  kRace,                 // unordered accesses of two threads, one a write
  kUninitialised,        // read of shared memory that the block never wrote
  kOutOfBounds,          // outside shared memory and every registered buffer
  kReadOnly,             // write into a read-only buffer
  kMisaligned,           // a 16-byte access at another address
  kAsyncCopy,            // access to the target of a copy not waited for
  kLaunch,               // grid, block or shared memory that no GPU takes
};

const char* name(Kind kind);

struct Report {
  Kind kind;
  // What, and where: kernel function and line, block, thread, address.
  std::string text;
};

// What the launches since the last clear_reports() did wrong.
const std::vector<Report>& reports();
void clear_reports();
// The reports' texts, one a line.
std::string reports_text();

// Files a report on the instruction at `pc` of the running thread (null: none),
// once for each instruction and kind in a launch and at most
// Options::max_reports times.
void report(Kind kind, const std::string& what, const void* pc);
// The launch that begins has done nothing wrong yet.
void begin_launch_reports();
bool launch_failed();

} // namespace emu
