#include "millrace/kernels/elementwise.h"

#include "millrace/base/check.h"
#include "millrace/kernels/elementwise_variants.h"

namespace millrace {
namespace {

const ElementwiseVariant& variant(Isa isa) {
  switch (isa) {
    case Isa::kScalar: return ref::kElementwise;
    case Isa::kAvx2:
    case Isa::kAvx2Vnni: return avx2::kElementwise;
    case Isa::kAvx512Vnni:
    case Isa::kAvx512VnniBf16:
    case Isa::kAmx: return avx512::kElementwise;
  }
  MR_CHECK(false, "unknown instruction set");
}

}  // namespace

void rms_norm_row(Isa isa, const float* x, const float* weight, float eps, int64_t size, float* y) {
  variant(isa).rms_norm_row(x, weight, eps, size, y);
}

void layer_norm_row(Isa isa, const float* x, const float* weight, const float* bias, float eps, int64_t size, float* y) {
  variant(isa).layer_norm_row(x, weight, bias, eps, size, y);
}

void rope_head(Isa isa, float* head, const float* cos, const float* sin, int64_t rotary_dim, bool interleaved) {
  MR_DCHECK(rotary_dim % 2 == 0, "values are rotated in pairs");
  variant(isa).rope_head(head, cos, sin, rotary_dim, interleaved);
}

void activate_row(Isa isa, ActivationKind kind, const float* x, int64_t size, float* y) { variant(isa).activate_row(kind, x, size, y); }

void activate_mul_row(Isa isa, ActivationKind kind, const float* gate, const float* up, int64_t size, float* y) {
  variant(isa).activate_mul_row(kind, gate, up, size, y);
}

void add_row(Isa isa, const float* x, int64_t size, float* y) { variant(isa).add_row(x, size, y); }

void scale_row(Isa isa, const float* x, float scale, int64_t size, float* y) { variant(isa).scale_row(x, scale, size, y); }

void add_scaled_row(Isa isa, const float* x, float scale, int64_t size, float* y) { variant(isa).add_scaled_row(x, scale, size, y); }

void clip_row(Isa isa, float* x, float limit, int64_t size) { variant(isa).clip_row(x, limit, size); }

void limit_gated_row(Isa isa, float* gate, float* up, float limit, float offset, int64_t size) {
  variant(isa).limit_gated_row(gate, up, limit, offset, size);
}

void softcap_row(Isa isa, float* x, float cap, int64_t size) { variant(isa).softcap_row(x, cap, size); }

RowMax max_row(Isa isa, const float* x, int64_t size) { return variant(isa).max_row(x, size); }

}  // namespace millrace
