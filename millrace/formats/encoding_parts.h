#pragma once

#include <cstring>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/formats/weight_encoding.h"

// What the readers of weight encodings share.
namespace millrace {

// The fields of quantization_config; errors say "PATH: config.json: quantization_config.FIELD is X, expected ...".
class EncodingConfig {
 public:
  EncodingConfig(std::string path, const json::object& fields) : path_(std::move(path)), fields_(fields) {}

  const json::value* find(std::string_view name) const;  // null when absent or null
  Result<int64_t> integer(std::string_view name, std::optional<int64_t> otherwise, int64_t least, int64_t most) const;
  Result<std::string> text(std::string_view name, std::string_view otherwise) const;
  Result<bool> flag(std::string_view name, bool otherwise) const;
  Status unexpected(std::string_view name, std::string_view expected) const;

 private:
  std::string path_;
  json::object fields_;
};

// The tensors of one module, checked as they are asked for.
class ModuleParts {
 public:
  ModuleParts(const Checkpoint& checkpoint, const std::string& module) : checkpoint_(checkpoint), module_(module) {}

  bool has(std::string_view suffix) const { return find(suffix) != nullptr; }
  const SourceTensor* find(std::string_view suffix) const { return checkpoint_.find(module_ + std::string(suffix)); }

  // The tensor module + suffix, which must have one of these types and this shape; what `shape_words` says of it goes into the error.
  Result<const SourceTensor*> need(std::string_view suffix, std::string_view meaning, std::initializer_list<DType> dtypes,
                                   const std::vector<int64_t>& shape, std::string_view shape_words);
  // The same for a tensor that may have any of several shapes.
  Result<const SourceTensor*> need_any_shape(std::string_view suffix, std::string_view meaning, std::initializer_list<DType> dtypes);
  Status wrong_shape(const SourceTensor& tensor, const std::vector<int64_t>& shape, std::string_view shape_words) const;
  Status error(std::string message) const;  // about the module
  void add(const SourceTensor& tensor, std::string_view meaning) { parts_.push_back({&tensor, meaning}); }

  EncodedMatrix take(std::shared_ptr<GroupedWeights> weights);

 private:
  const Checkpoint& checkpoint_;
  const std::string& module_;
  std::vector<EncodedMatrix::Part> parts_;
};

template <class T>
T load_element(const SourceTensor& tensor, int64_t index) {
  T value;
  std::memcpy(&value, tensor.data.data() + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}
float load_float(const SourceTensor& tensor, int64_t index);  // of F16, BF16 or F32

// Code `index` of a stream of codes of `bits` bits, low bits first, in 32-bit words `word_stride` apart from word `first` on.
inline uint8_t load_packed(const SourceTensor& words, int64_t first, int64_t word_stride, int bits, int64_t index) {
  const int64_t bit = index * bits, word = bit / 32;
  const int shift = static_cast<int>(bit % 32);
  uint64_t value = load_element<uint32_t>(words, first + word * word_stride);
  if (shift + bits > 32) value |= static_cast<uint64_t>(load_element<uint32_t>(words, first + (word + 1) * word_stride)) << 32;
  return static_cast<uint8_t>((value >> shift) & ((1u << bits) - 1));
}

// Codes [0, count) of such a stream.
inline void unpack_stream(const SourceTensor& words, int64_t first, int64_t word_stride, int bits, int64_t count, uint8_t* codes) {
  const uint64_t mask = (1u << bits) - 1;
  uint64_t pending = 0;
  int have = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (have < bits) {
      pending |= static_cast<uint64_t>(load_element<uint32_t>(words, first)) << have;
      first += word_stride;
      have += 32;
    }
    codes[i] = static_cast<uint8_t>(pending & mask);
    pending >>= bits;
    have -= bits;
  }
}

// Puts code columns[i] at i, if there are columns.
void reorder(const std::vector<int32_t>& columns, uint8_t* codes);

// The order of columns in which groups are contiguous, from g_idx (column -> group); empty where they already are.
// Error: an index out of range, or groups of other sizes than `group_size`.
Result<std::vector<int32_t>> columns_of_groups(const ModuleParts& parts, const SourceTensor& g_idx, int64_t group_size, int64_t num_groups);

// What compressed-tensors packs as FP4: the module has weight_packed, and its scales say whether it is NVFP4 or MXFP4.
Result<EncodedMatrix> open_packed_fp4(ModuleParts& parts, int64_t rows, int64_t k);

using ReadEncoding = Result<std::shared_ptr<const WeightEncoding>> (*)(const EncodingConfig&);
Result<std::shared_ptr<const WeightEncoding>> read_gptq_encoding(const EncodingConfig& config);
Result<std::shared_ptr<const WeightEncoding>> read_awq_encoding(const EncodingConfig& config);
Result<std::shared_ptr<const WeightEncoding>> read_bitsandbytes_encoding(const EncodingConfig& config);
Result<std::shared_ptr<const WeightEncoding>> read_compressed_tensors_encoding(const EncodingConfig& config);
Result<std::shared_ptr<const WeightEncoding>> read_fp8_encoding(const EncodingConfig& config);
Result<std::shared_ptr<const WeightEncoding>> read_mxfp4_encoding(const EncodingConfig& config);
Result<std::shared_ptr<const WeightEncoding>> read_hqq_encoding(const EncodingConfig& config);

}  // namespace millrace
