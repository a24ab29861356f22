#pragma once

#include <ostream>
#include <vector>

#include "report.h"

// A kernel with one mistake and its correct twin.
struct SeededBug {
  const char* name;
  emu::Kind kind; // of the report that the mistake must cause
  // Launches it; fills the output; returns the launcher's error.
  int (*launch)(bool mistaken, std::vector<float>& output);
};

inline std::ostream& operator<<(std::ostream& stream, const SeededBug& bug) {
  return stream << bug.name;
}

const std::vector<SeededBug>& seeded_bugs();
