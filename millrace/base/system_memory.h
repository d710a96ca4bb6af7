#pragma once

#include <cstdint>

namespace millrace {

// Memory that this process can still take without pushing others out: the kernel's MemAvailable, or what the control group's limit
// leaves if that is less. Where neither can be read, a number larger than any machine.
int64_t available_memory_bytes();

}  // namespace millrace
