#include "report.h"

#include <set>
#include <utility>

#include "block.h"
#include "launcher.h"
#include "symbols.h"

namespace emu {
namespace {

std::vector<Report> filed;
std::set<std::pair<Kind, const void*>> seen;
int in_this_launch = 0;
bool failed = false;

} // namespace

const char* name(Kind kind) {
  switch (kind) {
    case Kind::kBarrierDivergence:
      return "barrier divergence";
    case Kind::kCollectiveDivergence:
      return "collective divergence";
    case Kind::kCollectiveMask:
      return "collective mask";
    case Kind::kDeadlock:
      return "deadlock";
    case Kind::kRace:
      return "race";
    case Kind::kUninitialised:
      return "uninitialised read";
    case Kind::kOutOfBounds:
      return "out of bounds";
    case Kind::kReadOnly:
      return "read-only buffer written";
    case Kind::kMisaligned:
      return "misaligned access";
    case Kind::kAsyncCopy:
      return "asynchronous copy not waited for";
    case Kind::kLaunch:
      return "launch configuration";
  }
  return "unknown";
}

const std::vector<Report>& reports() {
  return filed;
}

void clear_reports() {
  filed.clear();
}

std::string reports_text() {
  std::string text;
  for (const Report& report : filed) {
    text += (text.empty() ? "" : "\n") + report.text;
  }
  return text;
}

void report(Kind kind, const std::string& what, const void* pc) {
  failed = true;
  if (!seen.emplace(kind, pc).second ||
      in_this_launch == options().max_reports) {
    return;
  }
  ++in_this_launch;
  std::string text = std::string(name(kind)) + ": " + what;
  if (pc != nullptr) {
    text += ", at " + describe_code(pc);
  }
  text += describe_running_thread();
  filed.push_back({kind, std::move(text)});
}

void begin_launch_reports() {
  seen.clear();
  in_this_launch = 0;
  failed = false;
}

bool launch_failed() {
  return failed;
}

} // namespace emu
