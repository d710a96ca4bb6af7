#pragma once

#include <cstdint>

#include "millrace/kernels/elementwise.h"

namespace millrace {

// What one variant of the row operations offers; elementwise.cc chooses among them.
struct ElementwiseVariant {
  void (*rms_norm_row)(const float* x, const float* weight, float eps, int64_t size, float* y);
  void (*layer_norm_row)(const float* x, const float* weight, const float* bias, float eps, int64_t size, float* y);
  void (*rope_head)(float* head, const float* cos, const float* sin, int64_t rotary_dim, bool interleaved);
  void (*activate_row)(ActivationKind kind, const float* x, int64_t size, float* y);
  void (*activate_mul_row)(ActivationKind kind, const float* gate, const float* up, int64_t size, float* y);
  void (*add_row)(const float* x, int64_t size, float* y);
  void (*scale_row)(const float* x, float scale, int64_t size, float* y);
  void (*add_scaled_row)(const float* x, float scale, int64_t size, float* y);
  void (*clip_row)(float* x, float limit, int64_t size);
  void (*limit_gated_row)(float* gate, float* up, float limit, float offset, int64_t size);
  void (*softcap_row)(float* x, float cap, int64_t size);
  RowMax (*max_row)(const float* x, int64_t size);
};

namespace ref {
extern const ElementwiseVariant kElementwise;  // the formulas as loops: the judge of the others, and the scalar level
}
namespace avx2 {
extern const ElementwiseVariant kElementwise;
}
namespace avx512 {
extern const ElementwiseVariant kElementwise;
}

}  // namespace millrace
