#pragma once

#include <cstdint>
#include <vector>

#include "millrace/base/clock.h"

namespace millrace {

// When the operations of one step ran, by the steady clock: what an executor notes for a profile when it is asked to.
// Between the beginnings of two operations every worker either computes the first of them or waits for another to finish it.
struct StepTimes {
  int num_threads = 0;
  int64_t begin_ns = 0, end_ns = 0;  // of the step
  std::vector<int64_t> op_begin_ns;  // [operations that ran, the program's first]
  std::vector<int64_t> op_busy_ns;   // [operations that ran][num_threads] what each worker computed

  // For the executor: room for the operations that will run; where an operation begins (the first call counts); a part of it that a worker
  // computed.
  void resize(std::size_t num_ops, int threads) {
    num_threads = threads;
    op_begin_ns.assign(num_ops, 0);
    op_busy_ns.assign(num_ops * static_cast<std::size_t>(threads), 0);
  }
  void begin_op(std::size_t op) {
    if (op_begin_ns[op] == 0) op_begin_ns[op] = steady_ns();
  }
  void add_busy(std::size_t op, int worker, int64_t ns) {
    op_busy_ns[op * static_cast<std::size_t>(num_threads) + static_cast<std::size_t>(worker)] += ns;
  }
};

}  // namespace millrace
