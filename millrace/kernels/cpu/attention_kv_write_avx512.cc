// g++ 12 reports its own _mm512_undefined_*() as uninitialized.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "millrace/kernels/attention_variants.h"

namespace millrace::avx512 {

void kv_write_bf16(const float* k, const float* v, int64_t head_dim, std::byte* keys, std::byte* values) {
  constexpr int kKeyRowBytes = kBlockTokens * 4;
  const __m512i one = _mm512_set1_epi32(1), half_below = _mm512_set1_epi32(0x7fff), quiet = _mm512_set1_epi32(0x400000);
  // bf16 in the upper half of each lane; below it lies what rounding left.
  const auto rounded = [&](const float* from) __attribute__((always_inline)) {
    const __m512 value = _mm512_loadu_ps(from);
    const __m512i bits = _mm512_castps_si512(value), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, half_below), odd);
    return _mm512_mask_or_epi32(sum, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), bits, quiet);
  };
  const __m512i upper = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25, 23, 21, 19, 17, 15,
                                         13, 11, 9, 7, 5, 3, 1);
  const __m512i row =
      _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(kKeyRowBytes));
  for (int64_t d = 0; d < head_dim; d += 32) {
    const __m512i pairs = _mm512_permutex2var_epi16(rounded(k + d), upper, rounded(k + d + 16));
    _mm512_i32scatter_epi32(keys + d / 2 * kKeyRowBytes, row, pairs, 1);
  }
  // The other token of the pair may be written at the same time: its halves are not touched.
  for (int64_t d = 0; d < head_dim; d += 16) _mm512_mask_storeu_epi16(values + d * 4, 0x55555555, _mm512_srli_epi32(rounded(v + d), 16));
}

}  // namespace millrace::avx512
