#include <immintrin.h>

#include "millrace/measure/peak_loops.h"

namespace millrace::avx2vnni {
namespace {

double int8(int64_t rounds) {
  constexpr int kChains = 12;
  __m256i weight = _mm256_set1_epi8(3), x = _mm256_set1_epi8(2), sums[kChains] = {};
#pragma GCC unroll 16
  for (__m256i& sum : sums) __asm__ volatile("" : "+x"(sum));  // unlike chains, or the compiler makes them one
  for (int64_t i = 0; i < rounds; ++i) {
    __asm__ volatile("" : "+x"(x));
#pragma GCC unroll 16
    for (__m256i& sum : sums) sum = _mm256_dpbusd_avx_epi32(sum, weight, x);
  }
#pragma GCC unroll 16
  for (__m256i& sum : sums) __asm__ volatile("" : "+x"(sum));
  return 2.0 * 32 * kChains * static_cast<double>(rounds);
}

}  // namespace

// Floats and reading are AVX2's.
extern const PeakLoops kPeakLoops = {int8, nullptr, nullptr, nullptr, nullptr};

}  // namespace millrace::avx2vnni
