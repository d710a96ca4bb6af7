#include "millrace/base/system_memory.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <limits>
#include <string>
#include <string_view>

namespace millrace {
namespace {

constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();

int64_t mem_available() {
  std::ifstream file("/proc/meminfo");
  for (std::string key, unit; file >> key;) {
    int64_t kib = 0;
    if (!(file >> kib)) break;
    std::getline(file, unit);
    if (key == "MemAvailable:") return kib * 1024;
  }
  return kUnknown;
}

int64_t read_number(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : kUnknown;  // "max" is no number
}

// The sum of the lines of a memory.stat that begin with one of the keys.
int64_t sum_of(const std::string& path, const std::array<std::string_view, 2>& keys) {
  std::ifstream file(path);
  int64_t sum = 0, value = 0;
  for (std::string key; file >> key >> value;) {
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) sum += value;
  }
  return sum;
}

}  // namespace

int64_t cgroup_available_bytes(const std::string& root) {
  struct Version {
    const char *limit, *usage, *stat;
    std::array<std::string_view, 2> file_keys;
  };
  static constexpr Version kVersions[] = {{"/memory.max", "/memory.current", "/memory.stat", {"active_file", "inactive_file"}},
                                          {"/memory/memory.limit_in_bytes",
                                           "/memory/memory.usage_in_bytes",
                                           "/memory/memory.stat",
                                           {"total_active_file", "total_inactive_file"}}};
  for (const Version& version : kVersions) {
    const int64_t limit = read_number(root + version.limit), usage = read_number(root + version.usage);
    if (limit == kUnknown || usage == kUnknown) continue;
    const int64_t files = std::clamp<int64_t>(sum_of(root + version.stat, version.file_keys), 0, usage);
    return std::max<int64_t>(0, limit - (usage - files));
  }
  return kUnknown;
}

int64_t available_memory_bytes() { return std::min(mem_available(), cgroup_available_bytes("/sys/fs/cgroup")); }

}  // namespace millrace
