#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "millrace/base/check.h"
#include "millrace/kernels/attention.h"
#include "millrace/kernels/attention_variants.h"
#include "millrace/tensor/half.h"

// Rounds keys and values to the cache's format, four at a time with the baseline's instructions: a token's heads are few bytes, and most of
// the time goes to scattering them. Every level writes the same bits; AVX-512 has instructions for bf16's scattering.
namespace millrace {
namespace {

// Four bf16 values in the low 64 bits. Nearest even: 0x7fff plus the lowest kept bit carries only above half, or at half when the kept part
// is odd. NaN stays NaN (quiet).
uint64_t bf16_of_four(__m128 x) {
  const __m128i bits = _mm_castps_si128(x), kept = _mm_srli_epi32(bits, 16);
  const __m128i lowest = _mm_and_si128(kept, _mm_set1_epi32(1));
  const __m128i rounded = _mm_srli_epi32(_mm_add_epi32(bits, _mm_add_epi32(lowest, _mm_set1_epi32(0x7fff))), 16);
  const __m128i quiet_nan = _mm_or_si128(kept, _mm_set1_epi32(0x40));
  const __m128i result = _mm_blendv_epi8(rounded, quiet_nan, _mm_castps_si128(_mm_cmpunord_ps(x, x)));
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_packus_epi32(result, result)));
}

// Four int8 codes: x / scale to the nearest even whole number. |x| <= 127 scale, so that only a scale of zero or NaN needs care: codes are
// 0.
uint32_t int8_of_four(__m128 x, float scale) {
  if (!(scale > 0)) return 0;
  const __m128 limit = _mm_set1_ps(127.0f);
  const __m128 steps = _mm_max_ps(_mm_min_ps(_mm_div_ps(x, _mm_set1_ps(scale)), limit), _mm_sub_ps(_mm_setzero_ps(), limit));
  const __m128i words = _mm_packs_epi32(_mm_cvtps_epi32(steps), _mm_setzero_si128());
  return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_packs_epi16(words, words)));
}

// The first `count` (1 .. 4) values, then `rest`.
__m128 load_first(const float* x, int64_t count, float rest = 0.0f) {
  if (count >= 4) return _mm_loadu_ps(x);
  float values[4] = {rest, rest, rest, rest};
  for (int64_t i = 0; i < count; ++i) values[i] = x[i];
  return _mm_loadu_ps(values);
}

// Four codes of E4M3 without its subnormal numbers: x / scale to the nearest even one, or between 0 and 2^-6 to the nearer.
uint32_t fp8_of_four(__m128 x, float scale) {
  if (!(scale > 0)) return 0;
  const __m128i bits = _mm_castps_si128(_mm_div_ps(x, _mm_set1_ps(scale))), magnitude = _mm_and_si128(bits, _mm_set1_epi32(0x7fffffff));
  // Three bits of the mantissa are kept: half of the lowest, less one if it is even, carries what is above the middle. Then exponents are
  // counted as E4M3 does, from 7 instead of 127.
  const __m128i lowest = _mm_and_si128(_mm_srli_epi32(magnitude, 20), _mm_set1_epi32(1));
  const __m128i rounded = _mm_srli_epi32(_mm_add_epi32(magnitude, _mm_add_epi32(lowest, _mm_set1_epi32(0x7ffff))), 20);
  const __m128i code = _mm_min_epi32(_mm_sub_epi32(rounded, _mm_set1_epi32(120 << 3)), _mm_set1_epi32(0x7e));
  const __m128i is_zero = _mm_cmpgt_epi32(_mm_set1_epi32((120 << 23) + 1), magnitude);  // up to 2^-7
  const __m128i unsigned_code = _mm_andnot_si128(is_zero, _mm_max_epi32(code, _mm_set1_epi32(1 << 3)));
  const __m128i words = _mm_packus_epi32(_mm_or_si128(unsigned_code, _mm_slli_epi32(_mm_srli_epi32(bits, 31), 7)), _mm_setzero_si128());
  return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_packus_epi16(words, words)));
}

// max|x| / largest, or NaN if any value is not finite: the scale says so, and the scores will.
float scale_of(const float* x, int64_t size, float largest_code) {
  __m128i largest = _mm_setzero_si128();  // magnitudes of floats are ordered as their bits are, and what is not finite is above all
  for (int64_t i = 0; i < size; i += 4) {
    largest = _mm_max_epi32(largest, _mm_and_si128(_mm_castps_si128(load_first(x + i, size - i)), _mm_set1_epi32(0x7fffffff)));
  }
  largest = _mm_max_epi32(largest, _mm_shuffle_epi32(largest, 0x4e));
  largest = _mm_max_epi32(largest, _mm_shuffle_epi32(largest, 0xb1));
  const float magnitude = _mm_cvtss_f32(_mm_castsi128_ps(largest));
  return std::isfinite(magnitude) ? magnitude / largest_code : std::numeric_limits<float>::quiet_NaN();
}

// int4's steps for a head's values: centre + scale * (code - 7.5), both of bf16's precision. NaN if any value is not finite.
struct Steps {
  float scale, centre;
  uint32_t bits() const { return static_cast<uint32_t>(f32_to_bf16(scale)) | static_cast<uint32_t>(f32_to_bf16(centre)) << 16; }
};
Steps steps_of(const float* x, int64_t size) {
  if (!std::isfinite(scale_of(x, size, 1.0f))) return {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::quiet_NaN()};
  __m128 least = _mm_set1_ps(x[0]), most = least;
  for (int64_t i = 0; i < size; i += 4) {
    const __m128 four = load_first(x + i, size - i, x[0]);
    least = _mm_min_ps(least, four);
    most = _mm_max_ps(most, four);
  }
  least = _mm_min_ps(least, _mm_movehl_ps(least, least));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  const float smallest = std::min(least[0], least[1]), largest = std::max(most[0], most[1]);
  // Halves first: the difference of the largest numbers has no room in f32.
  const float scale = (largest / 2 - smallest / 2) / 7.5f, centre = largest / 2 + smallest / 2;
  return {bf16_to_f32(f32_to_bf16(scale)), bf16_to_f32(f32_to_bf16(centre))};
}

// Four codes of int4 as bytes: the nearest of centre + scale * (code - 7.5), of two the higher. With a scale of zero all values are the
// centre, whatever the code.
uint32_t int4_of_four(__m128 x, Steps steps) {
  if (!(steps.scale > 0)) return 0;
  const __m128 from_centre = _mm_div_ps(_mm_sub_ps(x, _mm_set1_ps(steps.centre)), _mm_set1_ps(steps.scale));
  const __m128 limit = _mm_set1_ps(7.0f), places = _mm_max_ps(_mm_min_ps(_mm_floor_ps(from_centre), limit), _mm_set1_ps(-8.0f));
  const __m128i words = _mm_packs_epi32(_mm_cvtps_epi32(_mm_add_ps(places, _mm_set1_ps(8.0f))), _mm_setzero_si128());
  return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_packus_epi16(words, words)));
}

// A dword of K: of eight codes, one a byte, dimensions 0 1 4 5 2 3 6 7 from the lowest.
uint32_t key_codes(uint32_t first_four, uint32_t last_four) {
  const auto pairs = [](uint32_t four) { return (four | four >> 4) & 0x00ff00ffu; };  // 1|0 in byte 0, 3|2 in byte 2
  return pairs(first_four) | pairs(last_four) << 8;
}

template <class T>
void put(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof(T));
}

}  // namespace

void kv_write(Isa isa, const KvView& kv, int64_t block, int64_t token, int64_t kv_head, const float* k, const float* v) {
  MR_DCHECK(block >= 0 && token >= 0 && token < kBlockTokens && kv_head >= 0 && kv_head < kv.geometry.num_kv_heads, "no such KV slot");
  const KvHeadLayout layout(kv.geometry);
  const int64_t head_dim = kv.geometry.head_dim, g = layout.values_per_dword;
  constexpr int64_t kRowBytes = kBlockTokens * 4;  // of K: one dword of every token
  std::byte* head = kv.base + block * kv.block_stride + kv_head * layout.size;
  std::byte* keys = head + token * 4;
  std::byte* values = head + layout.v_offset + token / g * layout.v_row_dwords * 4 + token % g * (4 / g);
  const auto write_scaled = [&](float largest_code, auto code_four) {
    const float k_scale = scale_of(k, head_dim, largest_code), v_scale = scale_of(v, head_dim, largest_code);
    put(head + layout.k_scales_offset + token * 4, k_scale);
    put(head + layout.v_scales_offset + token * 4, v_scale);
    for (int64_t d = 0; d < head_dim; d += 4) {
      put(keys + d / 4 * kRowBytes, code_four(load_first(k + d, head_dim - d), k_scale));
      const uint32_t v_four = code_four(load_first(v + d, head_dim - d), v_scale);
      for (int i = 0; i < 4; ++i) put(values + (d + i) * 4, static_cast<uint8_t>(v_four >> (8 * i)));
    }
  };
  const auto write_int4 = [&] {
    const Steps k_steps = steps_of(k, head_dim), v_steps = steps_of(v, head_dim);
    put(head + layout.k_scales_offset + token * 4, k_steps.bits());
    put(head + layout.v_scales_offset + token * 4, v_steps.bits());
    const auto code_four = [&](const float* x, int64_t d, Steps steps) {
      return d < head_dim ? int4_of_four(load_first(x + d, head_dim - d), steps) : 0;
    };
    for (int64_t d = 0; d < head_dim; d += 8)
      put(keys + d / 8 * kRowBytes, key_codes(code_four(k, d, k_steps), code_four(k, d + 4, k_steps)));
    for (int64_t d = 0; d < layout.v_row_dwords && d < head_dim; d += 4) {
      const uint32_t codes = code_four(v, d, v_steps) | code_four(v, d + layout.v_row_dwords, v_steps) << 4;
      for (int i = 0; i < 4; ++i) put(values + (d + i) * 4, static_cast<uint8_t>(codes >> (8 * i)));
    }
  };
  // The padding of K's last group multiplies queries padded with zeros, so that it must be zero; the padding of V's rows gives outputs
  // which are dropped.
  switch (kv.geometry.format) {
    case KvFormat::kF32:
      for (int64_t d = 0; d < head_dim; ++d) put(keys + d * kRowBytes, k[d]);
      std::memcpy(values, v, static_cast<std::size_t>(head_dim) * 4);
      break;
    case KvFormat::kBf16:
      if (isa >= Isa::kAvx512Vnni && head_dim % 32 == 0) return avx512::kv_write_bf16(k, v, head_dim, keys, values);
      for (int64_t d = 0; d < head_dim; d += 4) {
        const uint64_t k_four = bf16_of_four(load_first(k + d, head_dim - d));
        put(keys + d / 2 * kRowBytes, static_cast<uint32_t>(k_four));
        if (d + 2 < head_dim) put(keys + (d / 2 + 1) * kRowBytes, static_cast<uint32_t>(k_four >> 32));
        // V's rows are padded to 16 dimensions: the zeros after the last one have room.
        const uint64_t v_four = bf16_of_four(load_first(v + d, head_dim - d));
        for (int i = 0; i < 4; ++i) put(values + (d + i) * 4, static_cast<uint16_t>(v_four >> (16 * i)));
      }
      break;
    case KvFormat::kInt8: return write_scaled(127.0f, int8_of_four);
    case KvFormat::kFp8E4M3: return write_scaled(448.0f, fp8_of_four);
    case KvFormat::kInt4: return write_int4();
  }
}

}  // namespace millrace
