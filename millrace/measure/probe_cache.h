#pragma once

#include <optional>
#include <string>

#include "millrace/measure/machine_probe.h"

// Measurements of the machine are kept in a file, so that a report need not wait for them.
namespace millrace {

// The file of `machine` in a folder: its name has a hash of CPU, instruction set, number of CPUs and version.
std::string probe_cache_file(const std::string& folder, const MachineProfile& machine);

// What the folder holds about `machine`. Absent: nothing, or nothing that can be read and believed; then it is measured again.
std::optional<MachineProfile> read_probe_cache(const std::string& folder, const MachineProfile& machine);
// Written beside and renamed: a reader sees the old file or the new one. Makes the folder.
Status write_probe_cache(const std::string& folder, const MachineProfile& profile);

struct ProbedMachine {
  MachineProfile profile;
  std::string file;       // where it is kept; empty: nowhere
  bool measured = false;  // something was measured now
  Status cache_error;     // why it could not be kept
};

// The profile of this machine for at least `thread_counts`: from the folder what is there, measured and kept what is not. `refresh`
// measures all of them again. An empty folder keeps nothing.
Result<ProbedMachine> probe_machine_cached(std::span<const int> thread_counts, const std::string& folder, bool refresh,
                                           const ProbeOptions& options = {});

}  // namespace millrace
