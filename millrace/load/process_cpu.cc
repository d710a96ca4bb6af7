#include "millrace/load/process_cpu.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace millrace {
namespace {

struct ProcessStat {
  int parent = 0;
  int64_t ticks = 0;  // its own, and of children that have ended and were waited for
};

std::optional<ProcessStat> read_stat(int pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  const std::size_t name_end = line.rfind(')');  // the name before it may hold anything
  if (name_end == std::string::npos) return std::nullopt;
  char state = 0;
  int parent = 0;
  long long user = 0, system = 0, children_user = 0, children_system = 0;
  const int found = std::sscanf(line.c_str() + name_end + 1, " %c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lld %lld %lld %lld", &state,
                                &parent, &user, &system, &children_user, &children_system);
  if (found != 6) return std::nullopt;
  return ProcessStat{parent, user + system + children_user + children_system};
}

}  // namespace

Result<double> process_tree_cpu_seconds(int pid) {
  const auto root = read_stat(pid);
  if (!root) return Status::not_found(fmt::format("there is no process {}", pid));
  std::multimap<int, std::pair<int, int64_t>> children;  // parent -> (pid, ticks)
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    const std::string name = entry.path().filename().string();
    int number = 0;
    if (std::from_chars(name.data(), name.data() + name.size(), number).ptr != name.data() + name.size()) continue;
    if (const auto stat = read_stat(number)) children.emplace(stat->parent, std::pair(number, stat->ticks));
  }
  int64_t ticks = root->ticks;
  for (std::vector<int> open{pid}; !open.empty();) {
    const int parent = open.back();
    open.pop_back();
    const auto [begin, end] = children.equal_range(parent);
    for (auto child = begin; child != end; ++child) {
      ticks += child->second.second;
      open.push_back(child->second.first);
    }
  }
  return static_cast<double>(ticks) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

double own_cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) { return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec); };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace millrace
