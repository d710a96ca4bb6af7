#include "millrace/tensor/grid_tables.h"

namespace millrace {
namespace {

#include "millrace/tensor/grid_tables.inc"

constexpr int kThreeLevels[4] = {8, 25, 43, 0};
constexpr int kTernaryEighths[4] = {-8, 0, 8, 0};
constexpr int kEightLevels[8] = {4, 12, 20, 28, 36, 44, 52, 62};
constexpr int kOddLevels[8] = {1, 3, 5, 7, 9, 11, 13, 15};

// Entries of `kWidth` codes of `kBits` bits become words of four bytes.
template <int kWidth, int kBits, int kEntries>
constexpr void expand(const uint16_t (&codes)[kEntries], const int (&levels)[1 << kBits], uint32_t (&words)[kEntries * kWidth / 4]) {
  for (int entry = 0; entry < kEntries; ++entry) {
    for (int i = 0; i < kWidth; ++i) {
      const auto value = static_cast<uint8_t>(levels[(codes[entry] >> (kBits * i)) & ((1 << kBits) - 1)]);
      words[entry * (kWidth / 4) + i / 4] |= static_cast<uint32_t>(value) << (8 * (i % 4));
    }
  }
}

constexpr GridTables expanded() {
  GridTables tables{};
  expand<8, 2>(kIq2XxsCodes, kThreeLevels, tables.iq2_xxs);
  expand<8, 2>(kIq2XsCodes, kThreeLevels, tables.iq2_xs);
  expand<8, 2>(kIq2SCodes, kThreeLevels, tables.iq2_s);
  expand<4, 3>(kIq3XxsCodes, kEightLevels, tables.iq3_xxs);
  expand<4, 3>(kIq3SCodes, kOddLevels, tables.iq3_s);
  expand<8, 2>(kIq1Codes, kTernaryEighths, tables.iq1);
  return tables;
}

}  // namespace

constinit const GridTables kGridTables = expanded();

}  // namespace millrace
