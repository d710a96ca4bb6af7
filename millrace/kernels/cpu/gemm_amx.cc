// gemm() with AMX tiles: groups of 16 tokens; fewer are AVX-512's, bit for bit the same.
//
// Quantized classes. A block's dot products of 16 rows and 16 tokens are one instruction: a line of a panel (panel_layout.h) is a row of
// the instruction's second operand as it stands. Scales differ from block to block, so the tile of integers goes through memory (the L1
// cache) into vectors, where it is scaled and added as gemm_ref.cc says.
//
// Measured on a Sapphire Rapids class server: 19 cycles for the products of a block, whatever its k; 18 to store a tile; and while tiles
// are in use 512-bit arithmetic runs at one instruction a cycle, not two. So it is the scaling that bounds these kernels.

// g++ 12 reports its own _mm512_undefined_*() as uninitialized.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "millrace/kernels/gemm_kernels.h"
#include "millrace/kernels/panel_layout.h"

namespace millrace::amx {
namespace {

#include "millrace/kernels/cpu/gemm_vec512.inc"
#include "millrace/kernels/cpu/gemm_simd.inc"
#include "millrace/kernels/cpu/amx_tiles.inc"

constexpr int64_t kGroup = 128;       // tokens that share an unpacked strip of weights
constexpr int64_t kTileBlocks = 16;   // blocks of k of a strip

// One panel's weights of some blocks: signed codes in lines, scales (of each 16 k in Q6_K), minima.
template <WeightClass kClass>
struct Strip {
  static constexpr int kHalves = kClass == WeightClass::kQ6_K ? 2 : 1;
  I codes[kTileBlocks][8];
  F scale[kTileBlocks][kHalves];
  F minimum[panel_layout(kClass).has_minimum ? kTileBlocks : 1];
};

template <WeightClass kClass>
MR_INLINE void unpack(const std::byte* panel, int64_t block_begin, int64_t num_blocks, Strip<kClass>& strip) {
  constexpr PanelStride kStride = panel_stride(kClass, GroupFormat{});
  const I zero = set1_byte(kClass == WeightClass::kQ8_0 ? 0x80 : panel_layout(kClass).zero_point);
  for (int64_t b = 0; b < num_blocks; ++b) {
    Block<kClass, 1> w;
    load_weights(panel + kStride.block_offset(block_begin + b), panel + kStride.header_offset(block_begin + b), GroupFormat{}, 0, 0, w);
    MR_UNROLL for (int q = 0; q < 8; ++q) {
      // Q8_0 comes as code + 128.
      strip.codes[b][q] = kClass == WeightClass::kQ8_0 ? bit_xor(w.codes[q][0], zero)
                          : panel_layout(kClass).zero_point != 0 ? _mm512_sub_epi8(w.codes[q][0], zero) : w.codes[q][0];
    }
    MR_UNROLL for (int half = 0; half < Strip<kClass>::kHalves; ++half) strip.scale[b][half] = w.scale[half][0];
    if constexpr (panel_layout(kClass).has_minimum) strip.minimum[b] = w.minimum[0];
  }
}

// What one panel is multiplied with: `num_tokens` tokens, a multiple of 16, and the strip's blocks of them.
struct Tokens {
  int64_t num_tokens, code_stride;
  const int8_t* codes;                 // the first token's
  const float (*scales)[kTileBlocks];  // [num_tokens]
  const float (*sides)[kTileBlocks];   // [num_tokens] scale * sum of codes, for minima
};

// The integer products of `num_blocks` blocks and 16 tokens.
template <WeightClass kClass>
MR_INLINE void multiply_tile(const Strip<kClass>& strip, int64_t num_blocks, const int8_t* codes, int64_t code_stride,
                             int32_t (*products)[Strip<kClass>::kHalves][kTileRows * 16]) {
  constexpr int kHalves = Strip<kClass>::kHalves;
  constexpr int kHalfBytes = static_cast<int>(kBlockK) / kHalves, kHalfLines = 8 / kHalves;
  const auto even = [&](const int8_t* x, const I* lines, int32_t* to) __attribute__((always_inline)) {
    _tile_zero(0);
    _tile_loadd(4, x, code_stride);
    _tile_loadd(6, lines, 64);
    _tile_dpbssd(0, 4, 6);
    _tile_stored(0, to, 64);
  };
  const auto odd = [&](const int8_t* x, const I* lines, int32_t* to) __attribute__((always_inline)) {
    _tile_zero(1);
    _tile_loadd(5, x, code_stride);
    _tile_loadd(7, lines, 64);
    _tile_dpbssd(1, 5, 7);
    _tile_stored(1, to, 64);
  };
  before_tile_loads();
  for (int64_t i = 0; i < num_blocks * kHalves; i += 2) {
    even(codes + i * kHalfBytes, &strip.codes[0][0] + i * kHalfLines, products[0][0] + i * kTileRows * 16);
    if (i + 1 < num_blocks * kHalves) odd(codes + (i + 1) * kHalfBytes, &strip.codes[0][0] + (i + 1) * kHalfLines, products[0][0] + (i + 1) * kTileRows * 16);
  }
}

// y of one panel. Multiplying and scaling take turns: done together they take no less time.
template <WeightClass kClass>
[[gnu::noinline]] void multiply_strip(const Strip<kClass>& strip, int64_t num_blocks, const Tokens& x, bool first, float* y, int64_t y_stride) {
  constexpr int kHalves = Strip<kClass>::kHalves;
  alignas(64) int32_t products[kTileBlocks][kHalves][kTileRows * 16];
  for (int64_t token = 0; token < x.num_tokens; token += kTileRows, y += kTileRows * y_stride) {
    multiply_tile<kClass>(strip, num_blocks, x.codes + token * x.code_stride, x.code_stride, products);
    const auto *scales = x.scales + token, *sides = x.sides + token;
    F sums[kTileRows];
    MR_UNROLL for (int t = 0; t < kTileRows; ++t) sums[t] = first ? zero_f() : load_f(y + t * y_stride);
    for (int64_t b = 0; b < num_blocks; ++b) {
      MR_UNROLL for (int half = 0; half < kHalves; ++half) {
        const F scale = strip.scale[b][half];
        MR_UNROLL for (int t = 0; t < kTileRows; ++t) {
          sums[t] = fma(to_float(load_i(products[b][half] + t * 16)), mul(scale, set1_f(&scales[t][b])), sums[t]);
        }
      }
      if constexpr (panel_layout(kClass).has_minimum) {
        MR_UNROLL for (int t = 0; t < kTileRows; ++t) sums[t] = fma(strip.minimum[b], set1_f(&sides[t][b]), sums[t]);
      }
    }
    MR_UNROLL for (int t = 0; t < kTileRows; ++t) store_f(y + t * y_stride, sums[t]);
  }
}

// Scales of `num_tokens` tokens, and where `sides` is not null scale * sum of codes.
MR_INLINE void gather_scales(const Activations& x, int64_t token, int64_t num_tokens, int64_t block, int64_t num_blocks, float (*scales)[kTileBlocks],
                             float (*sides)[kTileBlocks]) {
  const __m512i ones = _mm512_set1_epi16(1);
  const auto mask = static_cast<__mmask16>((1u << num_blocks) - 1);
  for (int64_t m = 0; m < num_tokens; ++m) {
    const int64_t at = (token + m) * (x.k_padded() / kBlockK) + block;
    const __m512 scale = _mm512_maskz_loadu_ps(mask, x.scales + at);
    _mm512_store_ps(scales[m], scale);
    if (sides == nullptr) continue;
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_madd_epi16(_mm512_maskz_loadu_epi32(mask, x.sums16 + 2 * at), ones));
    _mm512_store_ps(sides[m], _mm512_mul_ps(scale, sum));
  }
}

// A multiple of 16 tokens.
template <WeightClass kClass>
MR_INLINE void gemm_tiles(const GemmCall& call) {
  constexpr bool kHasMinimum = panel_layout(kClass).has_minimum;
  alignas(64) float scales[kGroup][kTileBlocks], sides[kHasMinimum ? kGroup : 1][kTileBlocks];
  Strip<kClass> strip;
  const Activations& x = *call.x;
  const TileScope scope(kClass == WeightClass::kQ6_K ? 16 : 32);
  const int64_t num_blocks = call.k / kBlockK, chunk = even_share(num_blocks, kTileBlocks, kChunkMultiple<kClass>);
  for (int64_t m = 0; m < call.num_rows; m += kGroup) {
    const int64_t num_tokens = call.num_rows - m < kGroup ? call.num_rows - m : kGroup;
    for (int64_t block = 0; block < num_blocks; block += chunk) {
      const int64_t count = num_blocks - block < chunk ? num_blocks - block : chunk;
      gather_scales(x, call.row_begin + m, num_tokens, block, count, scales, kHasMinimum ? sides : nullptr);
      for (int64_t panel = 0; panel < call.num_panels; ++panel) {
        unpack<kClass>(call.panels + panel * call.panel_bytes, block, count, strip);
        const Tokens tokens{num_tokens, x.k_padded(), x.codes + (call.row_begin + m) * x.k_padded() + block * kBlockK, scales, sides};
        multiply_strip<kClass>(strip, count, tokens, block == 0, call.y + m * call.y_stride + panel * 16, call.y_stride);
      }
    }
  }
}

template <WeightClass kClass>
MR_INLINE void gemm_wide(const GemmCall& call, GemmFunction narrow) {
  const int64_t whole = call.num_rows / kTileRows * kTileRows;
  if (whole > 0) {
    GemmCall tiles = call;
    tiles.num_rows = whole;
    gemm_tiles<kClass>(tiles);
  }
  if (whole < call.num_rows) {
    GemmCall rest = call;
    rest.row_begin += whole;
    rest.num_rows -= whole;
    rest.y += whole * call.y_stride;
    narrow(rest);
  }
}

}  // namespace

void gemm_q4_0(const GemmCall& call) { gemm_wide<WeightClass::kQ4_0>(call, avx512::gemm_q4_0); }
void gemm_q4_1(const GemmCall& call) { gemm_wide<WeightClass::kQ4_1>(call, avx512::gemm_q4_1); }
void gemm_q5_0(const GemmCall& call) { gemm_wide<WeightClass::kQ5_0>(call, avx512::gemm_q5_0); }
void gemm_q5_1(const GemmCall& call) { gemm_wide<WeightClass::kQ5_1>(call, avx512::gemm_q5_1); }
void gemm_q8_0(const GemmCall& call) { gemm_wide<WeightClass::kQ8_0>(call, avx512::gemm_q8_0); }
void gemm_q4_k(const GemmCall& call) { gemm_wide<WeightClass::kQ4_K>(call, avx512::gemm_q4_k); }
void gemm_q5_k(const GemmCall& call) { gemm_wide<WeightClass::kQ5_K>(call, avx512::gemm_q5_k); }
void gemm_q6_k(const GemmCall& call) { gemm_wide<WeightClass::kQ6_K>(call, avx512::gemm_q6_k); }

}  // namespace millrace::amx
