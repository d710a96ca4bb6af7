// One value at a time, as the scalar references compute.
#include <emmintrin.h>

#include "millrace/measure/peak_loops.h"

namespace millrace::baseline {
namespace {

constexpr int kChains = 8;

double int8(int64_t rounds) {
  int32_t a = 3, b = 5, sums[kChains] = {};
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int32_t& sum : sums) {
      __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(sum));
      sum += a * b;
    }
  }
  __asm__ volatile("" : : "r"(sums) : "memory");
  return 2.0 * kChains * static_cast<double>(rounds);
}

double f32(int64_t rounds) {
  float a = 1.0f, b = 0.5f, sums[kChains] = {};
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (float& sum : sums) {
      __asm__ volatile("" : "+x"(a), "+x"(b), "+x"(sum));
      sum += a * b;
    }
  }
  __asm__ volatile("" : : "r"(sums) : "memory");
  return 2.0 * kChains * static_cast<double>(rounds);
}

uint64_t read(const std::byte* data, int64_t num_bytes, int64_t prefetch_bytes) {
  __m128i sums[8] = {};
  for (int64_t i = 0; i < num_bytes; i += 128) {
    if (prefetch_bytes > 0) {
#pragma GCC unroll 16
      for (int64_t line = 0; line < 128; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(data) + i + prefetch_bytes + line, _MM_HINT_T0);
    }
#pragma GCC unroll 16
    for (int64_t j = 0; j < 8; ++j) sums[j] = _mm_add_epi64(sums[j], _mm_load_si128(reinterpret_cast<const __m128i*>(data + i) + j));
  }
  for (int64_t j = 1; j < 8; ++j) sums[0] = _mm_add_epi64(sums[0], sums[j]);
  return static_cast<uint64_t>(_mm_cvtsi128_si64(sums[0])) + static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_unpackhi_epi64(sums[0], sums[0])));
}

}  // namespace

const PeakLoops kPeakLoops = {int8, nullptr, nullptr, f32, read};

}  // namespace millrace::baseline
