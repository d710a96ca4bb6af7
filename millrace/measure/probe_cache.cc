#include "millrace/measure/probe_cache.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace millrace {
namespace {

// Of what the file says and means; a file of another format is not found.
constexpr int kFormat = 2;

uint64_t fnv1a(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

}  // namespace

std::string probe_cache_file(const std::string& folder, const MachineProfile& machine) {
  const std::string key = fmt::format("{}|{}|{}|{}|{}|{}", kFormat, machine.cpu, machine.isa, machine.num_cpus, machine.version,
                                      machine.last_level_cache_bytes);
  return fmt::format("{}/probe-{:016x}.json", folder, fnv1a(key));
}

std::optional<MachineProfile> read_probe_cache(const std::string& folder, const MachineProfile& machine) {
  std::ifstream file(probe_cache_file(folder, machine), std::ios::binary);
  if (!file) return std::nullopt;
  std::ostringstream text;
  text << file.rdbuf();
  const auto value = parse_json(text.str(), {.max_depth = 16, .max_bytes = std::size_t{16} << 20});
  if (!value.is_ok()) return std::nullopt;
  auto profile = machine_profile_from_json(*value);
  if (!profile.is_ok() || !profile->same_machine(machine)) return std::nullopt;
  return std::move(profile).value();
}

Status write_probe_cache(const std::string& folder, const MachineProfile& profile) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  const std::string path = probe_cache_file(folder, profile), temporary = fmt::format("{}.{}", path, ::getpid());
  std::ofstream file(temporary, std::ios::binary);
  file << json::serialize(to_json(profile)) << '\n';
  file.close();
  if (!file) {
    std::filesystem::remove(temporary, error);
    return Status::unavailable(fmt::format("cannot write {}", temporary));
  }
  std::filesystem::rename(temporary, path, error);
  if (error) {
    const std::string why = error.message();
    std::filesystem::remove(temporary, error);
    return Status::unavailable(fmt::format("cannot write {}: {}", path, why));
  }
  return Status::ok();
}

Result<ProbedMachine> probe_machine_cached(std::span<const int> thread_counts, const std::string& folder, bool refresh,
                                           const ProbeOptions& options) {
  ProbedMachine probed;
  probed.profile = this_machine();
  if (!folder.empty()) {
    if (auto kept = read_probe_cache(folder, probed.profile)) probed.profile = std::move(*kept);
  }
  std::vector<int> missing;
  for (int count : thread_counts) {
    if (refresh || probed.profile.of_threads(count) == nullptr) missing.push_back(count);
  }
  if (!missing.empty()) {
    MR_ASSIGN_OR_RETURN(MachineProfile measured, probe_machine(missing, options));
    for (ThreadProfile& thread : probed.profile.threads) {
      if (measured.of_threads(thread.num_threads) == nullptr) measured.threads.push_back(std::move(thread));
    }
    std::sort(measured.threads.begin(), measured.threads.end(), [](const auto& a, const auto& b) { return a.num_threads < b.num_threads; });
    probed.profile = std::move(measured);
    probed.measured = true;
    if (!folder.empty()) probed.cache_error = write_probe_cache(folder, probed.profile);
  }
  if (!folder.empty() && probed.cache_error.is_ok()) probed.file = probe_cache_file(folder, probed.profile);
  return probed;
}

}  // namespace millrace
