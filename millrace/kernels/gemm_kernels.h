#pragma once

#include <cstddef>
#include <cstdint>

#include "millrace/kernels/gemm.h"

// What the dispatcher and the variants of gemm() share. Kept free of templates: per-ISA files include it.
namespace millrace {

inline constexpr int kNumWeightClasses = static_cast<int>(WeightClass::kQ6_K) + 1;

// gemm() with its arguments as one record; `panels` is the first of num_panels.
struct GemmCall {
  WeightClass weight_class;
  const std::byte* panels;
  int64_t panel_bytes, num_panels, k;
  const Activations* x;
  int64_t row_begin, num_rows;
  float* y;
  int64_t y_stride;
  float* scratch;
};

using GemmFunction = void (*)(const GemmCall&);

struct GemmTable {
  GemmFunction fast[kNumWeightClasses];  // by WeightClass
  GemmFunction exact;                    // any class
};

namespace ref { extern const GemmTable kGemm; }

}  // namespace millrace
