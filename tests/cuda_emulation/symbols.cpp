#include "symbols.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <sstream>

namespace emu {
namespace {

// Calls of these are written in kernels: the line of interest is the caller's.
bool is_primitive(const std::string& line) {
  for (const char* file :
       {"primitives.h:", "memory_functions.h:", "half.h:", "collectives.h:"}) {
    if (line.starts_with(file)) {
      return true;
    }
  }
  return false;
}

// addr2line prints two lines, function and file:line, for the innermost of the
// functions inlined there, then for the one around it, and so on.
std::string lookup(const std::string& module, uintptr_t offset) {
  std::ostringstream command;
  command << "addr2line -Cfsie '" << module << "' 0x" << std::hex << offset
          << " 2>/dev/null";
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(
      popen(command.str().c_str(), "r"), &pclose);
  std::string output;
  char buffer[4096];
  while (pipe != nullptr && fgets(buffer, sizeof buffer, pipe.get())) {
    output += buffer;
  }
  std::istringstream lines(output);
  std::string function;
  std::string line;
  do {
    std::getline(lines, function);
    std::getline(lines, line);
  } while (is_primitive(line) && lines.peek() != EOF);
  if (function.empty() || function == "??") {
    return "";
  }
  line = line.substr(0, line.find(" (discriminator"));
  return function + " (" + line + ")";
}

std::string describe(const void* pc) {
  // The call is one byte before what it returns to.
  const auto address = reinterpret_cast<uintptr_t>(pc) - 1;
  Dl_info info;
  link_map* map = nullptr;
  std::ostringstream text;
  if (!dladdr1(
          reinterpret_cast<void*>(address),
          &info,
          reinterpret_cast<void**>(&map),
          RTLD_DL_LINKMAP)) {
    text << pc;
    return text.str();
  }
  const uintptr_t offset = address - map->l_addr;
  const std::string found = lookup(info.dli_fname, offset);
  if (!found.empty()) {
    return found;
  }
  text << info.dli_fname << "+0x" << std::hex << offset;
  return text.str();
}

} // namespace

std::string describe_code(const void* pc) {
  static std::map<const void*, std::string> known;
  const auto [entry, unknown] = known.try_emplace(pc);
  if (unknown) {
    entry->second = describe(pc);
  }
  return entry->second;
}

} // namespace emu
