#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

namespace millrace {

// When the operations of one step ran, by the steady clock: what an executor notes for a profile when it is asked to.
// Between the beginnings of two operations every worker either computes the first of them or waits for another to finish it.
struct StepTimes {
  int num_threads = 0;
  int64_t begin_ns = 0, end_ns = 0;    // of the step
  std::vector<int64_t> op_begin_ns;    // [operations that ran]
  std::vector<int64_t> op_busy_ns;     // [operations that ran][num_threads] what each worker computed

  static int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }
};

}  // namespace millrace
