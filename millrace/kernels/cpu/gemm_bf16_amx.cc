// bf16 weights times bf16 activations with AMX tiles. Weights lie in panels as the instruction wants them (panel_layout.h): 16 pairs of k
// are one tile. Any number of tokens takes the same instructions with fewer rows, so that a row's sums do not depend on the others: of each
// 32 k the even and the odd products are summed on their own, then both are added to the sum so far (denormal numbers count as zero).
#include "millrace/kernels/cpu/gemm_bf16_amx.h"

#include <immintrin.h>

#include "millrace/kernels/gemm_kernels.h"

namespace millrace::amx {
namespace {

#include "millrace/kernels/cpu/amx_tiles.inc"

constexpr int64_t kTilePairs = 16, kTileBytes = 1024;
constexpr int64_t kPrefetchBytes = 4096;
constexpr int64_t kStripPairs = 18 * kTilePairs;

// kTiles tiles of tokens times kPanels panels. `x` and `y` are the first token's; the second tile of tokens begins kTileRows further on.
template <int kTiles, int kPanels>
void multiply(const Bf16Product& call, const std::byte* panels, const uint16_t* x, float* y) {
  const int64_t panel_bytes = call.panel_bytes, num_pairs = call.num_pairs, x_stride = call.x_stride, y_stride = call.y_stride;
  const int64_t y_bytes = y_stride * static_cast<int64_t>(sizeof(float));
  before_tile_loads();
  if (call.adds) {
    _tile_loadd(0, y, y_bytes);
    if constexpr (kPanels == 2) _tile_loadd(1, y + 16, y_bytes);
    if constexpr (kTiles == 2) _tile_loadd(2, y + kTileRows * y_stride, y_bytes);
    if constexpr (kTiles == 2 && kPanels == 2) _tile_loadd(3, y + kTileRows * y_stride + 16, y_bytes);
  } else {
    _tile_zero(0);
    if constexpr (kPanels == 2) _tile_zero(1);
    if constexpr (kTiles == 2) _tile_zero(2);
    if constexpr (kTiles == 2 && kPanels == 2) _tile_zero(3);
  }
  const int64_t x_bytes = x_stride * static_cast<int64_t>(sizeof(uint16_t));
  // Activations are loaded with the hint that they are not needed again, so that they do not drive the weights out of the first cache
  // level.
  const auto step = [&](const std::byte* w, int64_t w_stride, const uint16_t* from) __attribute__((always_inline)) {
    _tile_stream_loadd(4, from, x_bytes);
    _tile_loadd(6, w, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kPanels == 2) {
      _tile_loadd(7, w + w_stride, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kTiles == 2) {
      _tile_stream_loadd(5, from + kTileRows * x_stride, x_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kPanels == 2) _tile_dpbf16ps(3, 5, 7);
    }
  };
  const int64_t whole = num_pairs / kTilePairs;
  for (int64_t i = 0; i < whole; ++i) {
    if constexpr (kTiles == 1) {
      // Few tokens: the weights come from memory.
      for (int p = 0; p < kPanels; ++p) {
        for (int64_t line = 0; line < kTileBytes; line += 64)
          __builtin_prefetch(panels + p * panel_bytes + i * kTileBytes + kPrefetchBytes + line, 0, 2);
      }
    }
    step(panels + i * kTileBytes, panel_bytes, x + i * 2 * kTilePairs);
  }
  if (const int64_t rest = num_pairs % kTilePairs; rest > 0) {
    alignas(64) std::byte last[kPanels * kTileBytes] = {};
    for (int p = 0; p < kPanels; ++p) {
      __builtin_memcpy(last + p * kTileBytes, panels + p * panel_bytes + whole * kTileBytes, static_cast<std::size_t>(rest * 64));
    }
    before_tile_loads();
    step(last, kTileBytes, x + whole * 2 * kTilePairs);
  }
  _tile_stored(0, y, y_bytes);
  if constexpr (kPanels == 2) _tile_stored(1, y + 16, y_bytes);
  if constexpr (kTiles == 2) _tile_stored(2, y + kTileRows * y_stride, y_bytes);
  if constexpr (kTiles == 2 && kPanels == 2) _tile_stored(3, y + kTileRows * y_stride + 16, y_bytes);
}

template <int kTiles>
void all_panels(const Bf16Product& call, int64_t row) {
  const uint16_t* x = call.x + row * call.x_stride;
  float* y = call.y + row * call.y_stride;
  int64_t panel = 0;
  for (; panel + 2 <= call.num_panels; panel += 2) multiply<kTiles, 2>(call, call.panels + panel * call.panel_bytes, x, y + panel * 16);
  if (panel < call.num_panels) multiply<kTiles, 1>(call, call.panels + panel * call.panel_bytes, x, y + panel * 16);
}

}  // namespace

void multiply_bf16(const Bf16Product& call) {
  constexpr int64_t kBoth = 2 * kTileRows;
  constexpr int kPairBytes = 64;
  int64_t row = 0;
  if (call.num_rows >= kBoth) {
    const TileScope scope(kPairBytes);
    for (; row + kBoth <= call.num_rows; row += kBoth) all_panels<2>(call, row);
  }
  const auto rest = static_cast<int>(call.num_rows - row);
  if (rest > kTileRows) {
    const TileScope scope(kPairBytes, kTileRows, rest - kTileRows);
    all_panels<2>(call, row);
  } else if (rest > 0) {
    const TileScope scope(kPairBytes, rest);
    all_panels<1>(call, row);
  }
}

void gemm_bf16(const GemmCall& call) {
  const int64_t x_stride = call.x->bf16_stride(), num_pairs = (call.k + 1) / 2;
  const uint16_t* x = call.x->bf16 + call.row_begin * x_stride;
  Bf16Product product{.panels = call.panels,
                      .panel_bytes = call.panel_bytes,
                      .num_panels = call.num_panels,
                      .num_pairs = num_pairs,
                      .x = x,
                      .x_stride = x_stride,
                      .num_rows = call.num_rows,
                      .y = call.y,
                      .y_stride = call.y_stride,
                      .adds = false};
  if (call.num_rows <= 2 * kTileRows) return multiply_bf16(product);
  // Many tokens: weights of two panels stay in the first cache level while activations stream through it, and a range of k of the
  // activations in the second while all panels take their turn at it.
  for (int64_t pair = 0; pair < num_pairs; pair += kStripPairs) {
    product.num_pairs = num_pairs - pair < kStripPairs ? num_pairs - pair : kStripPairs;
    product.x = x + 2 * pair;
    product.adds = pair > 0;
    for (int64_t panel = 0; panel < call.num_panels; panel += 2) {
      product.panels = call.panels + panel * call.panel_bytes + pair * 64;
      product.num_panels = call.num_panels - panel < 2 ? 1 : 2;
      product.y = call.y + panel * 16;
      multiply_bf16(product);
    }
  }
}

}  // namespace millrace::amx
