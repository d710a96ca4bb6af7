#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "millrace/tokenizer/tokenizer.h"

// The tokenizer's fields of a GGUF file, read the short way for tests: files/ has the reader that trusts nothing.
namespace millrace {

class GgufTestFile {
 public:
  explicit GgufTestFile(const std::string& path) : in_(path, std::ios::binary) {}

  // False where the file is absent or not GGUF.
  bool read(GgufVocabulary& vocab) {
    if (!in_ || number<uint32_t>() != 0x46554747) return false;
    number<uint32_t>();
    number<uint64_t>();
    const auto num_fields = number<uint64_t>();
    for (uint64_t i = 0; i < num_fields && in_; ++i) {
      const std::string key = text();
      field(key, number<uint32_t>(), vocab);
    }
    return !vocab.tokens.empty();
  }

 private:
  enum Type : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

  template <class T>
  T number() {
    T value{};
    in_.read(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  }
  std::string text() {
    std::string out(number<uint64_t>(), '\0');
    in_.read(out.data(), static_cast<std::streamsize>(out.size()));
    return out;
  }
  int64_t integer(uint32_t type) {
    switch (type) {
      case kU8:
      case kBool: return number<uint8_t>();
      case kI8: return number<int8_t>();
      case kU16: return number<uint16_t>();
      case kI16: return number<int16_t>();
      case kU32: return number<uint32_t>();
      case kI32: return number<int32_t>();
      case kF32: return static_cast<int64_t>(number<float>());
      case kF64: return static_cast<int64_t>(number<double>());
      default: return number<int64_t>();
    }
  }

  void field(const std::string& key, uint32_t type, GgufVocabulary& vocab) {
    const std::string prefix = "tokenizer.ggml.";
    const std::string name = key.starts_with(prefix) ? key.substr(prefix.size()) : "";
    if (type == kString) {
      const std::string value = text();
      if (name == "model") vocab.model = value;
      if (name == "pre") vocab.pre = value;
    } else if (type == kArray) {
      const auto element = number<uint32_t>();
      const auto size = number<uint64_t>();
      for (uint64_t i = 0; i < size && in_; ++i) {
        if (element == kString) {
          std::string value = text();
          if (name == "tokens")
            vocab.tokens.push_back(std::move(value));
          else if (name == "merges")
            vocab.merges.push_back(std::move(value));
        } else if (element == kF32) {
          const auto value = number<float>();
          if (name == "scores") vocab.scores.push_back(value);
        } else {
          const int64_t value = integer(element);
          if (name == "token_type") vocab.token_types.push_back(static_cast<int32_t>(value));
          if (name == "precompiled_charsmap") vocab.precompiled_charsmap += static_cast<char>(value);
        }
      }
    } else {
      const int64_t value = integer(type);
      const auto id = static_cast<int32_t>(value);
      if (name == "bos_token_id") vocab.bos_token_id = id;
      if (name == "eos_token_id") vocab.eos_token_id = id;
      if (name == "eot_token_id") vocab.eot_token_id = id;
      if (name == "unknown_token_id") vocab.unknown_token_id = id;
      if (name == "seperator_token_id") vocab.separator_token_id = id;
      if (name == "padding_token_id") vocab.padding_token_id = id;
      if (name == "cls_token_id") vocab.cls_token_id = id;
      if (name == "mask_token_id") vocab.mask_token_id = id;
      if (name == "add_bos_token") vocab.add_bos_token = value != 0;
      if (name == "add_eos_token") vocab.add_eos_token = value != 0;
      if (name == "add_space_prefix") vocab.add_space_prefix = value != 0;
      if (name == "remove_extra_whitespaces") vocab.remove_extra_whitespaces = value != 0;
    }
  }

  std::ifstream in_;
};

}  // namespace millrace
