#pragma once

#include "millrace/base/status.h"

namespace millrace {

// CPU seconds, user and system, that a process and those it started have used, from /proc. Errors: no such process.
Result<double> process_tree_cpu_seconds(int pid);

// CPU seconds of this process.
double own_cpu_seconds();

}  // namespace millrace
