#include <immintrin.h>

#include "millrace/measure/peak_loops.h"

namespace millrace::avx512 {
namespace {

double int8(int64_t rounds) {
  constexpr int kChains = 16;
  __m512i weight = _mm512_set1_epi8(3), x = _mm512_set1_epi8(2), sums[kChains] = {};
#pragma GCC unroll 16
  for (__m512i& sum : sums) __asm__ volatile("" : "+v"(sum));  // unlike chains, or the compiler makes them one
  for (int64_t i = 0; i < rounds; ++i) {
    __asm__ volatile("" : "+v"(x));
#pragma GCC unroll 16
    for (__m512i& sum : sums) sum = _mm512_dpbusd_epi32(sum, weight, x);
  }
#pragma GCC unroll 16
  for (__m512i& sum : sums) __asm__ volatile("" : "+v"(sum));
  return 2.0 * 64 * kChains * static_cast<double>(rounds);
}

double f32(int64_t rounds) {
  constexpr int kChains = 16;
  __m512 a = _mm512_set1_ps(1.0f), b = _mm512_set1_ps(0.5f), sums[kChains] = {};
#pragma GCC unroll 16
  for (__m512& sum : sums) __asm__ volatile("" : "+v"(sum));  // unlike chains, or the compiler makes them one
  for (int64_t i = 0; i < rounds; ++i) {
    __asm__ volatile("" : "+v"(a));
#pragma GCC unroll 16
    for (__m512& sum : sums) sum = _mm512_fmadd_ps(a, b, sum);
  }
#pragma GCC unroll 16
  for (__m512& sum : sums) __asm__ volatile("" : "+v"(sum));
  return 2.0 * 16 * kChains * static_cast<double>(rounds);
}

uint64_t read(const std::byte* data, int64_t num_bytes, int64_t prefetch_bytes) {
  __m512i sums[8] = {};
  for (int64_t i = 0; i < num_bytes; i += 512) {
    if (prefetch_bytes > 0) {
#pragma GCC unroll 16
      for (int64_t line = 0; line < 512; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(data) + i + prefetch_bytes + line, _MM_HINT_T0);
    }
#pragma GCC unroll 16
    for (int64_t j = 0; j < 8; ++j) sums[j] = _mm512_add_epi64(sums[j], _mm512_load_si512(data + i + 64 * j));
  }
  for (int64_t j = 1; j < 8; ++j) sums[0] = _mm512_add_epi64(sums[0], sums[j]);
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, sums[0]);
  uint64_t sum = 0;
  for (uint64_t lane : lanes) sum += lane;
  return sum;
}

}  // namespace

extern const PeakLoops kPeakLoops = {int8, nullptr, nullptr, f32, read};

}  // namespace millrace::avx512
