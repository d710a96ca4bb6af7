#include <immintrin.h>

#include "millrace/measure/peak_loops.h"

namespace millrace::avx2 {
namespace {

// The empty assembly makes a value unknown to the compiler without costing an instruction: nothing is computed ahead of the loop.
inline void hide(__m256i& v) { __asm__ volatile("" : "+x"(v)); }
inline void hide(__m256& v) { __asm__ volatile("" : "+x"(v)); }

// Any codes: the weight's sign moves to the activation, so that the first factor is unsigned and two products fit in 16 bits.
double int8(int64_t rounds) {
  constexpr int kChains = 8;
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i magnitude = _mm256_set1_epi8(3), weight = _mm256_set1_epi8(-3), x = _mm256_set1_epi8(2), sums[kChains] = {};
#pragma GCC unroll 16
  for (__m256i& sum : sums) hide(sum);  // unlike chains, or the compiler makes them one
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (__m256i& sum : sums) {
      hide(x);
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, weight)), ones));
    }
  }
#pragma GCC unroll 16
  for (__m256i& sum : sums) hide(sum);
  return 2.0 * 32 * kChains * static_cast<double>(rounds);
}

// Codes up to 15: eight sums of two products stay below 2^15 (8 * 2 * 15 * 127 = 30480).
double int8_short(int64_t rounds) {
  constexpr int kChains = 4, kSteps = 8;
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i weight = _mm256_set1_epi8(3), x = _mm256_set1_epi8(2), sums[kChains] = {};
#pragma GCC unroll 16
  for (__m256i& sum : sums) hide(sum);  // unlike chains, or the compiler makes them one
  for (int64_t i = 0; i < rounds; ++i) {
    __m256i shorts[kChains] = {};
#pragma GCC unroll 16
    for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 16
      for (__m256i& sum : shorts) {
        hide(x);
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weight, x));
        hide(sum);
      }
    }
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) sums[c] = _mm256_add_epi32(sums[c], _mm256_madd_epi16(shorts[c], ones));
  }
#pragma GCC unroll 16
  for (__m256i& sum : sums) hide(sum);
  return 2.0 * 32 * kChains * kSteps * static_cast<double>(rounds);
}

double f32(int64_t rounds) {
  constexpr int kChains = 12;  // two fused multiply-adds a cycle of a latency up to five
  __m256 a = _mm256_set1_ps(1.0f), b = _mm256_set1_ps(0.5f), sums[kChains] = {};
#pragma GCC unroll 16
  for (__m256& sum : sums) hide(sum);  // unlike chains, or the compiler makes them one
  for (int64_t i = 0; i < rounds; ++i) {
    hide(a);
#pragma GCC unroll 16
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(a, b, sum);
  }
#pragma GCC unroll 16
  for (__m256& sum : sums) hide(sum);
  return 2.0 * 8 * kChains * static_cast<double>(rounds);
}

uint64_t read(const std::byte* data, int64_t num_bytes, int64_t prefetch_bytes) {
  __m256i sums[8] = {};
  for (int64_t i = 0; i < num_bytes; i += 256) {
    if (prefetch_bytes > 0) {
#pragma GCC unroll 16
      for (int64_t line = 0; line < 256; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(data) + i + prefetch_bytes + line, _MM_HINT_T0);
    }
#pragma GCC unroll 16
    for (int64_t j = 0; j < 8; ++j) sums[j] = _mm256_add_epi64(sums[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(data + i) + j));
  }
  for (int64_t j = 1; j < 8; ++j) sums[0] = _mm256_add_epi64(sums[0], sums[j]);
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums[0]);
  return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

}  // namespace

extern const PeakLoops kPeakLoops = {int8, int8_short, nullptr, f32, read};

}  // namespace millrace::avx2
