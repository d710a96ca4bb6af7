#include "millrace/kernels/state_space.h"

#include "millrace/base/check.h"
#include "millrace/kernels/state_space_variants.h"

namespace millrace {
namespace {

const StateSpaceVariant& variant(Isa isa) {
  switch (isa) {
    case Isa::kScalar: return ref::kStateSpace;
    case Isa::kAvx2:
    case Isa::kAvx2Vnni: return avx2::kStateSpace;
    case Isa::kAvx512Vnni:
    case Isa::kAvx512VnniBf16:
    case Isa::kAmx: return avx512::kStateSpace;
  }
  MR_CHECK(false, "unknown instruction set");
}

}  // namespace

void convolve_row(Isa isa, std::span<const float* const> taps, const float* weights, int64_t stride, const float* bias, int64_t size,
                  float* y) {
  variant(isa).convolve_row(taps.data(), static_cast<int64_t>(taps.size()), weights, stride, bias, size, y);
}

void multiply_row(Isa isa, const float* a, const float* b, int64_t size, float* y) { variant(isa).multiply_row(a, b, size, y); }

void softplus_row(Isa isa, const float* x, int64_t size, float* y) { variant(isa).softplus_row(x, size, y); }

void scan_row(Isa isa, const ScanToken& token, int64_t size, float* y) { variant(isa).scan_row(token, size, y); }

}  // namespace millrace
