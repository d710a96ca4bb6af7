// g++ 12 reports its own _mm512_undefined_*() as uninitialized.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "millrace/kernels/gemm_kernels.h"
#include "millrace/kernels/panel_layout.h"

// bf16 weights times bf16 activations by vdpbf16ps, pairs of k ascending. (It treats subnormal numbers as zero.)
namespace millrace::avx512bf16 {
namespace {

constexpr int kTokensMax = 8;

template <int kPanels, int kTokens>
void tile(const std::byte* panels, int64_t panel_bytes, int64_t num_pairs, const uint16_t* x, int64_t x_stride, float* y,
          int64_t y_stride) {
  __m512 sums[kTokens][kPanels];
#pragma GCC unroll 8
  for (int m = 0; m < kTokens; ++m) {
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) sums[m][p] = _mm512_setzero_ps();
  }
  for (int64_t i = 0; i < num_pairs; ++i) {
    __m512bh w[kPanels];
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      const std::byte* line = panels + p * panel_bytes + i * 64;
      if (kTokens <= 2) __builtin_prefetch(line + 2560, 0, 2);
      w[p] = (__m512bh)_mm512_loadu_si512(line);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kTokens; ++m) {
      int32_t pair;
      __builtin_memcpy(&pair, x + m * x_stride + 2 * i, 4);
      const auto value = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) sums[m][p] = _mm512_dpbf16_ps(sums[m][p], w[p], value);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kTokens; ++m) {
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) _mm512_storeu_ps(y + m * y_stride + p * 16, sums[m][p]);
  }
}

template <int kPanels>
void tokens(const std::byte* panels, int64_t panel_bytes, int64_t num_pairs, const uint16_t* x, int64_t x_stride, int64_t num_tokens,
            float* y, int64_t y_stride) {
  for (; num_tokens >= kTokensMax; num_tokens -= kTokensMax, x += kTokensMax * x_stride, y += kTokensMax * y_stride) {
    tile<kPanels, kTokensMax>(panels, panel_bytes, num_pairs, x, x_stride, y, y_stride);
  }
  switch (num_tokens) {
    case 1: return tile<kPanels, 1>(panels, panel_bytes, num_pairs, x, x_stride, y, y_stride);
    case 2: return tile<kPanels, 2>(panels, panel_bytes, num_pairs, x, x_stride, y, y_stride);
    case 3: return tile<kPanels, 3>(panels, panel_bytes, num_pairs, x, x_stride, y, y_stride);
    case 4: return tile<kPanels, 4>(panels, panel_bytes, num_pairs, x, x_stride, y, y_stride);
    case 5: return tile<kPanels, 5>(panels, panel_bytes, num_pairs, x, x_stride, y, y_stride);
    case 6: return tile<kPanels, 6>(panels, panel_bytes, num_pairs, x, x_stride, y, y_stride);
    case 7: return tile<kPanels, 7>(panels, panel_bytes, num_pairs, x, x_stride, y, y_stride);
    default: return;
  }
}

}  // namespace

void gemm_bf16(const GemmCall& call) {
  const int64_t x_stride = call.x->bf16_stride(), num_pairs = (call.k + 1) / 2;
  const uint16_t* x = call.x->bf16 + call.row_begin * x_stride;
  int64_t panel = 0;
  for (; panel + 2 <= call.num_panels; panel += 2) {
    tokens<2>(call.panels + panel * call.panel_bytes, call.panel_bytes, num_pairs, x, x_stride, call.num_rows, call.y + panel * 16,
              call.y_stride);
  }
  if (panel < call.num_panels) {
    tokens<1>(call.panels + panel * call.panel_bytes, call.panel_bytes, num_pairs, x, x_stride, call.num_rows, call.y + panel * 16,
              call.y_stride);
  }
}

}  // namespace millrace::avx512bf16
