#pragma once

#include <array>
#include <vector>

#include "millrace/measure/machine_profile.h"
#include "millrace/model/cpu_executor.h"

// What the operations of a step cannot do without, whoever computes them: the bytes that must come from memory once and the products. What
// stays in caches between operations (activations) is not counted, nor is arithmetic other than products.
namespace millrace {

struct OpCost {
  // Published bytes of the tensors read, that is, of the file and not of our copy: matrices whole, of the embedding the rows' own, norms
  // and biases as the f32 that they become.
  int64_t weight_bytes = 0;
  // Keys and values in the cache's format. Read once per sequence and layer, what a window masks for every row not at all; written once.
  int64_t kv_bytes = 0;
  // A multiplication and an addition are two. 2 rows k tokens of a matrix; of attention 4 head_dim for every query head and key that it
  // sees.
  std::array<double, kNumArithmetics> operations{};

  int64_t bytes() const { return weight_bytes + kv_bytes; }
  double all_operations() const { return operations[0] + operations[1] + operations[2]; }
  OpCost& operator+=(const OpCost& other);
};

// Of each operation of the executor's program, in order, for this plan; zero for those that the plan leaves out.
// Matrices count for the arithmetic of their activations' form (kernels/gemm.h), attention for that of the KV format, also where a variant
// of the kernel computes it otherwise: the bound is what the format allows.
std::vector<OpCost> step_cost(const CpuExecutor& executor, const StepPlan& plan);

// What a machine can do for one program on one number of threads.
struct MachineBound {
  double bytes_per_second = 0;
  std::array<double, kNumArithmetics> operations_per_second{};

  double memory_seconds(const OpCost& cost) const { return static_cast<double>(cost.bytes()) / bytes_per_second; }
  double compute_seconds(const OpCost& cost) const;
  // No operation is faster than the slower of the two.
  double seconds(const OpCost& cost) const { return std::max(memory_seconds(cost), compute_seconds(cost)); }
};
MachineBound machine_bound(const ThreadProfile& profile, Isa isa);

}  // namespace millrace
