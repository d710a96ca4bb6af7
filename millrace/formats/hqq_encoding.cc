#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "millrace/formats/encoding_parts.h"
#include "millrace/formats/quoted_name.h"

// HQQ (half-quadratic quantization, https://mobiusml.github.io/hqq_blog) as HQQLinear.state_dict() of the hqq package writes it, which is
// what transformers saves. The matrix [rows, k] is seen as [groups, group_size], all rows one after the other, and
// value = scale (code - zero point), with a zero point that is any number.
//
//   W_q       codes, `packing` says how. A word holds the codes of groups that lie `step` apart, the first in its highest bits, where
//   `step`
//             is the number of rows of words: group g is in row g % step, field g / step
//               8bit_u8 (of 8, 6 and 5 bits), 4bit_u8, 2bit_u8, 1bit_u8   U8, fields of so many bits
//               3bit_32                                                  I32, ten fields of three bits below bit 30
//             [step, group_size]; with view_as_float the same bytes as floats
//   scale     [groups, 1]
//   zero      [groups, 1]
//   nbits group_size axis, shape [2], packing and compute_dtype as ASCII bytes, and flags: one tensor each
//
// With axis 0 the matrix is seen as [group_size, columns]: neighbours in a row have scales of their own.
namespace millrace {
namespace {

struct Packing {
  std::string_view name;
  CodeKind kind;
  int bits, fields;  // of a word
  int64_t word_bytes;
};
constexpr Packing kPackings[] = {
    {"8bit_u8", CodeKind::kInt8, 8, 1, 1}, {"4bit_u8", CodeKind::kInt4, 4, 2, 1}, {"3bit_32", CodeKind::kInt3, 3, 10, 4},
    {"2bit_u8", CodeKind::kInt2, 2, 4, 1}, {"1bit_u8", CodeKind::kInt2, 1, 8, 1},
};

constexpr int64_t kGroupMax = int64_t{1} << 32;

class HqqWeights : public GroupedWeights {
 public:
  const SourceTensor *words = nullptr, *scales = nullptr, *zeros = nullptr;
  Packing packing{};
  int64_t stored_group = 0, step = 0;  // weights of a group, which may go on in the next row; rows of words

  void read_codes(int64_t row, uint8_t* codes) const override {
    const auto mask = (1u << packing.bits) - 1;
    for (int64_t i = 0; i < k;) {
      const int64_t at = row * k + i, group = at / stored_group, in_group = at % stored_group,
                    end = std::min(k, i + stored_group - in_group);
      const int shift = static_cast<int>(packing.fields - 1 - group / step) * packing.bits;
      for (int64_t word = group % step * stored_group + in_group; i < end; ++i, ++word) {
        const uint32_t value = packing.word_bytes == 1 ? load_element<uint8_t>(*words, word) : load_element<uint32_t>(*words, word);
        codes[i] = static_cast<uint8_t>((value >> shift) & mask);
      }
    }
  }
  void read_scales(int64_t row, float* out) const override { read_numbers(*scales, row, out); }
  void read_zero_points(int64_t, uint8_t*) const override {}
  void read_float_zeros(int64_t row, float* out) const override { read_numbers(*zeros, row, out); }

 private:
  void read_numbers(const SourceTensor& tensor, int64_t row, float* out) const {
    for (int64_t group = 0; group < num_groups(); ++group) out[group] = load_float(tensor, (row * k + group * group_size) / stored_group);
  }
};

// A number that has a tensor of its own.
Result<int64_t> read_integer(ModuleParts& parts, std::string_view suffix) {
  MR_ASSIGN_OR_RETURN(const SourceTensor* tensor,
                      parts.need_any_shape(suffix, "parameter", {DType::kI32, DType::kI64, DType::kU8, DType::kBool}));
  const auto size = static_cast<std::size_t>(dtype_info(tensor->dtype).block_bytes);
  if (tensor->data.size() != size) return parts.wrong_shape(*tensor, {}, "one number");
  if (size == 1) return int64_t{load_element<uint8_t>(*tensor, 0)};
  return size == 4 ? int64_t{load_element<int32_t>(*tensor, 0)} : load_element<int64_t>(*tensor, 0);
}

Result<Packing> read_packing(ModuleParts& parts) {
  MR_ASSIGN_OR_RETURN(const SourceTensor* tensor, parts.need_any_shape(".packing", "layout of codes", {DType::kU8}));
  const std::string_view text(reinterpret_cast<const char*>(tensor->data.data()), std::min<std::size_t>(tensor->data.size(), 40));
  std::string names;
  for (const Packing& packing : kPackings) {
    if (packing.name == text) return packing;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", packing.name);
  }
  return Status::unsupported(parts.error(fmt::format("\"{}\" is {}, expected {}", tensor->name, quoted_name(text), names)).message());
}

class HqqEncoding : public WeightEncoding {
 public:
  Result<std::optional<EncodedMatrix>> find(const Checkpoint& checkpoint, const std::string& module, int64_t rows,
                                            int64_t k) const override {
    ModuleParts parts(checkpoint, module);
    if (!parts.has(".W_q")) return std::optional<EncodedMatrix>();
    const auto unsupported = [&](std::string message) { return Status::unsupported(parts.error(std::move(message)).message()); };
    auto weights = std::make_shared<HqqWeights>();
    MR_ASSIGN_OR_RETURN(weights->words,
                        parts.need_any_shape(".W_q", "codes", {DType::kU8, DType::kI32, DType::kF16, DType::kBf16, DType::kF32}));
    MR_ASSIGN_OR_RETURN(weights->packing, read_packing(parts));
    MR_ASSIGN_OR_RETURN(const int64_t axis, read_integer(parts, ".axis"));
    if (axis != 1)
      return unsupported(
          fmt::format("groups along axis {}, where every column has scales of its own: no kernel computes so, expected axis 1", axis));
    for (const std::string_view flag : {".quant_scale", ".quant_zero"}) {
      if (!parts.has(flag)) continue;
      MR_ASSIGN_OR_RETURN(const int64_t quantized, read_integer(parts, flag));
      if (quantized != 0)
        return unsupported(fmt::format("\"{}\" is set: scales that are quantized themselves are not read", flag.substr(1)));
    }
    MR_ASSIGN_OR_RETURN(weights->stored_group, read_integer(parts, ".group_size"));
    weights->kind = weights->packing.kind;
    weights->rows = rows;
    weights->k = k;
    weights->float_zeros = true;
    MR_RETURN_IF_ERROR(check_shape(parts, rows, k));
    MR_RETURN_IF_ERROR(open_groups(parts, *weights));
    // What else a module says of itself.
    for (const std::string_view known : {".nbits", ".unpack_view_dtype", ".view_as_float", ".compute_dtype", ".offload_meta",
                                         ".encoded_state_dict", ".stores_quant_config", ".channel_wise", ".optimize", ".round_zero"}) {
      if (const SourceTensor* tensor = parts.find(known)) parts.add(*tensor, "parameter");
    }
    return std::optional(parts.take(std::move(weights)));
  }

 private:
  static Status check_shape(ModuleParts& parts, int64_t rows, int64_t k) {
    MR_ASSIGN_OR_RETURN(const SourceTensor* shape, parts.need(".shape", "shape", {DType::kI64}, {2}, "[2]"));
    const auto stored_rows = load_element<int64_t>(*shape, 0), stored_k = load_element<int64_t>(*shape, 1);
    if (stored_rows == rows && stored_k == k) return Status::ok();
    return parts.error(fmt::format("\"{}\" says [{}, {}], expected [{}, {}]", shape->name, stored_rows, stored_k, rows, k));
  }

  static Status open_groups(ModuleParts& parts, HqqWeights& weights) {
    const int64_t rows = weights.rows, k = weights.k, size = weights.stored_group;
    if (size < 1 || size > kGroupMax || rows * k % size != 0)
      return parts.error(fmt::format("groups of {} weights in a matrix of {} x {}: expected a divisor of their number", size, rows, k));
    weights.group_size = std::gcd(size, k);
    if (weights.group_size % 32 != 0) {
      return Status::unsupported(
          parts.error(fmt::format("groups of {} weights in rows of {}: scales would change within 32 weights", size, k)).message());
    }
    const Packing& packing = weights.packing;
    const int64_t groups = rows * k / size;
    weights.step = (groups + packing.fields - 1) / packing.fields;
    if (packing.word_bytes == 1 && groups % packing.fields != 0)
      return parts.error(fmt::format("{} groups of {}, expected a multiple of {}", groups, packing.name, packing.fields));
    const int64_t bytes = weights.step * size * packing.word_bytes;
    if (static_cast<int64_t>(weights.words->data.size()) != bytes)
      return parts.error(fmt::format("\"{}\" has {} bytes, expected {} for {} groups of {} in {}", weights.words->name,
                                     weights.words->data.size(), bytes, groups, size, packing.name));
    MR_ASSIGN_OR_RETURN(weights.scales,
                        parts.need(".scale", "scales", {DType::kF16, DType::kBf16, DType::kF32}, {groups, 1}, "[groups, 1]"));
    MR_ASSIGN_OR_RETURN(weights.zeros,
                        parts.need(".zero", "zero points", {DType::kF16, DType::kBf16, DType::kF32}, {groups, 1}, "[groups, 1]"));
    weights.scale_dtype = weights.scales->dtype == weights.zeros->dtype ? weights.scales->dtype : DType::kF32;
    return Status::ok();
  }
};

}  // namespace

Result<std::shared_ptr<const WeightEncoding>> read_hqq_encoding(const EncodingConfig&) {
  return std::shared_ptr<const WeightEncoding>(std::make_shared<HqqEncoding>());
}

}  // namespace millrace
