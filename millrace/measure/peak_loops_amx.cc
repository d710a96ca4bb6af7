#include <immintrin.h>

#include "millrace/measure/peak_loops.h"

namespace millrace::amx {
namespace {

// Whole tiles: 16 rows of 64 bytes each. Two tokens' tiles by two weights' tiles, so that no sum waits for the one before.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

void start() {
  const TileConfig config;
  __asm__ volatile("" ::"r"(&config) : "memory");  // g++ 12 takes it that only the first 8 bytes are read
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
}

double int8(int64_t rounds) {
  start();
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_release();
  return 2.0 * 4 * 16 * 16 * 64 * static_cast<double>(rounds);
}

double bf16(int64_t rounds) {
  start();
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 2.0 * 4 * 16 * 16 * 32 * static_cast<double>(rounds);
}

}  // namespace

// f32 and reading are AVX-512's.
extern const PeakLoops kPeakLoops = {int8, nullptr, bf16, nullptr, nullptr};

}  // namespace millrace::amx
