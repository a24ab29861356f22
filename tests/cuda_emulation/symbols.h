#pragma once

#include <string>

namespace emu {

// Function, file and line of the instruction that returns to `pc`, or module
// and offset where there is no debug information.
std::string describe_code(const void* pc);

} // namespace emu
