#pragma once

#include <cstdint>

#include "millrace/kernels/state_space.h"

namespace millrace {

// What one variant of these operations offers; state_space.cc chooses among them.
struct StateSpaceVariant {
  void (*convolve_row)(const float* const* taps, int64_t num_taps, const float* weights, int64_t stride, const float* bias, int64_t size,
                       float* y);
  void (*multiply_row)(const float* a, const float* b, int64_t size, float* y);
  void (*softplus_row)(const float* x, int64_t size, float* y);
  void (*scan_row)(const ScanToken& token, int64_t size, float* y);
};

namespace ref {
extern const StateSpaceVariant kStateSpace;  // the formulas as loops: the judge of the others, and the scalar level
}
namespace avx2 {
extern const StateSpaceVariant kStateSpace;
}
namespace avx512 {
extern const StateSpaceVariant kStateSpace;
}

}  // namespace millrace
