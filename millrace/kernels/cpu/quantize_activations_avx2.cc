#include <immintrin.h>

#include "millrace/kernels/quantize_activations.h"

namespace millrace::avx2 {

void quantize_blocks_int8(const float* x, int64_t num_blocks, int8_t* codes, float* scales, int16_t* sums16) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  // The packs below work within 128-bit halves: their result is dwords 0 4 1 5 2 6 3 7 of the row.
  const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int64_t block = 0; block < num_blocks; ++block, x += 32, codes += 32, sums16 += 2) {
    __m256 v[4];
    for (int i = 0; i < 4; ++i) v[i] = _mm256_loadu_ps(x + 8 * i);
    __m256i max8 = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i) max8 = _mm256_max_epu32(max8, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
    __m128i max4 = _mm_max_epu32(_mm256_castsi256_si128(max8), _mm256_extracti128_si256(max8, 1));
    max4 = _mm_max_epu32(max4, _mm_shuffle_epi32(max4, 0x4e));
    max4 = _mm_max_epu32(max4, _mm_shuffle_epi32(max4, 0xb1));
    const auto max_bits = static_cast<uint32_t>(_mm_cvtsi128_si32(max4));
    const float max = __builtin_bit_cast(float, max_bits);
    scales[block] = max < kSmallestBlockMax ? 0.0f : max / 127.0f;
    if (!(max >= kSmallestBlockMax && max_bits < 0x7f800000u)) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), _mm256_setzero_si256());
      sums16[0] = sums16[1] = 0;
      continue;
    }
    const __m256 inverse = _mm256_set1_ps(127.0f / max);
    __m256i q[4];
    for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    // Sums of 16 codes: elements 0-15 are q[0] and q[1].
    __m256i pair = _mm256_hadd_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
    pair = _mm256_hadd_epi32(pair, pair);
    const __m128i both = _mm_add_epi32(_mm256_castsi256_si128(pair), _mm256_extracti128_si256(pair, 1));
    sums16[0] = static_cast<int16_t>(_mm_cvtsi128_si32(both));
    sums16[1] = static_cast<int16_t>(_mm_extract_epi32(both, 1));
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), _mm256_permutevar8x32_epi32(bytes, in_order));
  }
}

void convert_blocks_bf16(const float* x, int64_t num_blocks, uint16_t* out) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff), infinity = _mm256_set1_epi32(0x7f800000);
  const __m256i one = _mm256_set1_epi32(1), half_below = _mm256_set1_epi32(0x7fff), quiet = _mm256_set1_epi32(0x40);
  for (int64_t i = 0; i < num_blocks * 32; i += 16) {
    __m256i rounded[2];
    for (int j = 0; j < 2; ++j) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i + 8 * j));
      const __m256i high = _mm256_srli_epi32(bits, 16);
      const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, half_below), _mm256_and_si256(high, one));
      const __m256i is_nan = _mm256_cmpgt_epi32(_mm256_and_si256(bits, magnitude), infinity);
      rounded[j] = _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), _mm256_or_si256(high, quiet), is_nan);
    }
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded[0], rounded[1]), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), words);
  }
}

}  // namespace millrace::avx2
