#pragma once

#include <cstdint>
#include <string>

namespace millrace {

// Memory that this process can still take without pushing others out: the kernel's MemAvailable, or what the control group's limit
// leaves if that is less. Where neither can be read, a number larger than any machine.
int64_t available_memory_bytes();

// What the limit of the control group mounted at `root` leaves: files that it has in its cache do not count, the kernel drops them when
// memory is wanted. As above where there is no limit.
int64_t cgroup_available_bytes(const std::string& root);

}  // namespace millrace
