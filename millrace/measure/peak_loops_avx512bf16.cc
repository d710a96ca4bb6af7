#include <immintrin.h>

#include "millrace/measure/peak_loops.h"

namespace millrace::avx512bf16 {
namespace {

double bf16(int64_t rounds) {
  constexpr int kChains = 16;
  __m512i ones = _mm512_set1_epi16(0x3f80);
  __m512 sums[kChains] = {};
#pragma GCC unroll 16
  for (__m512& sum : sums) __asm__ volatile("" : "+v"(sum));  // unlike chains, or the compiler makes them one
  for (int64_t i = 0; i < rounds; ++i) {
    __asm__ volatile("" : "+v"(ones));
#pragma GCC unroll 16
    for (__m512& sum : sums) sum = _mm512_dpbf16_ps(sum, (__m512bh)ones, (__m512bh)ones);
  }
#pragma GCC unroll 16
  for (__m512& sum : sums) __asm__ volatile("" : "+v"(sum));
  return 2.0 * 32 * kChains * static_cast<double>(rounds);
}

}  // namespace

// Integers, f32 and reading are AVX-512's.
extern const PeakLoops kPeakLoops = {nullptr, nullptr, bf16, nullptr, nullptr};

}  // namespace millrace::avx512bf16
