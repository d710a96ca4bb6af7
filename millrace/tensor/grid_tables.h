#pragma once

#include <cstdint>

namespace millrace {

// The code books of GGUF's IQ types: an entry stands for 8 (IQ1, IQ2) or 4 (IQ3) consecutive weights. Four values a word as signed bytes,
// the first in the lowest; entries of 8 take two words.
struct GridTables {
  uint32_t iq2_xxs[2 * 256], iq2_xs[2 * 512], iq2_s[2 * 1024];  // magnitudes 8, 25, 43
  uint32_t iq3_xxs[256];                                        // magnitudes 4, 12, 20, 28, 36, 44, 52, 62
  uint32_t iq3_s[512];                                          // magnitudes 1, 3 ... 15
  uint32_t iq1[2 * 2048];                                       // -8, 0, 8: eighths, since the formats shift them by an eighth
};
extern const GridTables kGridTables;

// Seven bits of signs, and the eighth, which makes the number of minus signs even (IQ2_XXS, IQ2_XS, IQ3_XXS store seven).
constexpr uint32_t with_eighth_sign(uint32_t seven) { return seven | ((0x6996u >> ((seven ^ (seven >> 4)) & 15)) & 1) << 7; }

}  // namespace millrace
