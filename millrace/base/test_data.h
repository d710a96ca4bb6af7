#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace millrace {

// Where tests find the repository: tests/golden and friends. ctest sets MILLRACE_SOURCE_DIR; by hand, run from the root.
inline std::filesystem::path source_dir() {
  const char* dir = std::getenv("MILLRACE_SOURCE_DIR");
  return dir != nullptr ? dir : ".";
}

}  // namespace millrace
