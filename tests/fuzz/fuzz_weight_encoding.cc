// Any bytes as a checkpoint with a quantized matrix "m": an error, or codes, scales and zero points that can be read and packed, and packed
// rows that are the numbers which those mean. The input: two bytes, the length of config.json; config.json, in which "rows" and "k" say
// what matrix is wanted; model.safetensors.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "millrace/base/check.h"
#include "millrace/formats/weight_encoding.h"
#include "millrace/kernels/packed_matrix.h"
#include "millrace/tensor/dequantize.h"
#include "tests/fuzz/model_directory.h"

namespace {

using namespace millrace;

constexpr float kFp4Numbers[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};  // E2M1

// What a row of the panels must be, columns where they belong.
std::vector<float> numbers_of(const GroupedWeights& weights, int64_t row) {
  const auto k = static_cast<std::size_t>(weights.k), groups = static_cast<std::size_t>(weights.num_groups());
  std::vector<uint8_t> codes(k), zeros(groups);
  std::vector<float> scales(groups), float_zeros(groups), numbers(k);
  weights.read_codes(row, codes.data());
  weights.read_scales(row, scales.data());
  if (weights.float_zeros) weights.read_float_zeros(row, float_zeros.data());
  if (is_integer_code(weights.kind) && !weights.float_zeros) {
    weights.read_zero_points(row, zeros.data());
    float_zeros.assign(zeros.begin(), zeros.end());
  }
  for (std::size_t i = 0; i < k; ++i) {
    const std::size_t group = i / static_cast<std::size_t>(weights.group_size);
    float number = static_cast<float>(codes[i]) - float_zeros[group];
    if (weights.kind == CodeKind::kCodebook4) number = weights.codebook[codes[i]];
    if (weights.kind == CodeKind::kMxfp4 || weights.kind == CodeKind::kNvfp4) number = kFp4Numbers[codes[i]];
    if (weights.kind == CodeKind::kF8E4M3) {
      const auto byte = static_cast<std::byte>(codes[i]);
      dequantize_row(DType::kF8E4M3, &byte, 1, &number);
    }
    numbers[weights.columns.empty() ? i : static_cast<std::size_t>(weights.columns[i])] = scales[group] * weights.unit * number;
  }
  return numbers;
}

void check(const EncodedMatrix& matrix, int64_t num_rows, int64_t k) {
  const GroupedWeights& weights = *matrix.weights;
  MR_CHECK(weights.rows == num_rows && weights.k == k && weights.group_size > 0, "another matrix than was asked for");
  MR_CHECK(!matrix.parts.empty() && matrix.parts[0].tensor != nullptr, "a matrix without parts");
  std::vector<int32_t> rows(static_cast<std::size_t>(num_rows));
  std::iota(rows.begin(), rows.end(), 0);
  const auto packed = PackedMatrix::pack(weights, rows);
  std::vector<float> got(static_cast<std::size_t>(k));
  for (int64_t row = 0; row < num_rows; ++row) {
    const std::vector<float> want = numbers_of(weights, row);
    if (!packed.is_ok()) continue;
    // Panels have halves of NVFP4's scales, which round otherwise where products leave the normal numbers.
    if (weights.kind == CodeKind::kNvfp4 && !(weights.unit > 1e-30f && weights.unit < 1e30f)) continue;
    packed->unpack_row(row, got.data());
    for (std::size_t i = 0; i < got.size(); ++i)
      MR_CHECK(got[i] == want[i] || (std::isnan(got[i]) && std::isnan(want[i])), "packed weights mean other numbers");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  static const ModelDirectory directory;
  if (size < 2) return 0;
  const std::size_t config_size = std::min(static_cast<std::size_t>(data[0] + 256 * data[1]), size - 2);
  const auto text = [&](std::size_t begin, std::size_t end) {
    return std::string_view(reinterpret_cast<const char*>(data) + begin, end - begin);
  };
  directory.replace("config.json", text(2, 2 + config_size));
  directory.replace("model.safetensors", text(2 + config_size, size));
  const auto checkpoint = Checkpoint::open(directory.path());
  if (!checkpoint.is_ok()) return 0;
  const auto number = [&](const char* name) -> int64_t {
    const json::value* value = checkpoint->config().if_contains(name);
    return value != nullptr && value->is_int64() ? std::clamp<int64_t>(value->get_int64(), 1, 512) : 32;
  };
  const int64_t rows = number("rows"), k = number("k");
  const auto encoding = WeightEncoding::read(*checkpoint);
  if (!encoding.is_ok() || *encoding == nullptr) return 0;
  if (const auto found = (*encoding)->find(*checkpoint, "m", rows, k); found.is_ok() && found->has_value()) check(**found, rows, k);
  if (const auto stack = (*encoding)->find_stack(*checkpoint, "m", 2, rows, k); stack.is_ok()) {
    for (const EncodedMatrix& matrix : *stack) check(matrix, rows, k);
  }
  return 0;
}
