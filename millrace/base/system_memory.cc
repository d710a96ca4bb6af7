#include "millrace/base/system_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

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

int64_t read_number(const char* path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : kUnknown;  // "max" is no number
}

int64_t cgroup_available() {
  for (const auto& [limit_path, usage_path] : {std::pair{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
                                               std::pair{"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"}}) {
    const int64_t limit = read_number(limit_path), usage = read_number(usage_path);
    if (limit != kUnknown && usage != kUnknown) return std::max<int64_t>(0, limit - usage);
  }
  return kUnknown;
}

}  // namespace

int64_t available_memory_bytes() { return std::min(mem_available(), cgroup_available()); }

}  // namespace millrace
