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

// The first two lines that addr2line prints: function, then file:line.
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
  std::getline(lines, function);
  std::getline(lines, line);
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
