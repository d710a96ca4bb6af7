// g++ 12 reports its own _mm512_undefined_*() as uninitialized.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "millrace/kernels/quantize_activations.h"

namespace millrace::avx512 {

void convert_blocks_bf16(const float* x, int64_t num_blocks, uint16_t* out) {
  const __m512i one = _mm512_set1_epi32(1), half_below = _mm512_set1_epi32(0x7fff), quiet = _mm512_set1_epi32(0x400000);
  // The upper halves of two vectors' elements.
  const __m512i upper = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25, 23, 21, 19, 17, 15,
                                         13, 11, 9, 7, 5, 3, 1);
  const auto rounded = [&](const float* from) __attribute__((always_inline)) {
    const __m512 value = _mm512_loadu_ps(from);
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, half_below), odd);
    return _mm512_mask_or_epi32(sum, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), bits, quiet);
  };
  for (int64_t i = 0; i < num_blocks * 32; i += 32) {
    _mm512_storeu_si512(out + i, _mm512_permutex2var_epi16(rounded(x + i), upper, rounded(x + i + 16)));
  }
}

}  // namespace millrace::avx512
