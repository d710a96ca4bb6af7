#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/base/temporary_directory.h"

namespace millrace {

// Appends little-endian values to a string of bytes.
class ByteWriter {
 public:
  template <class T>
  ByteWriter& put(T value) {
    char raw[sizeof value];
    std::memcpy(raw, &value, sizeof value);
    bytes.append(raw, sizeof value);
    return *this;
  }
  ByteWriter& raw(std::string_view text) {
    bytes += text;
    return *this;
  }
  ByteWriter& string(std::string_view text) { return put<uint64_t>(text.size()).raw(text); }  // as GGUF has them

  std::string bytes;
};

// A GGUF file in pieces that a test may make wrong one by one.
struct GgufParts {
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::vector<std::string> entries;  // metadata
  std::vector<std::string> tensors;
  std::string data = std::string(64, '\1');
  uint64_t num_entries_added = 0, num_tensors_added = 0;  // lies: added to the true counts
  std::size_t alignment = 32;

  std::string bytes() const {
    ByteWriter out;
    out.raw(magic).put(version).put<uint64_t>(tensors.size() + num_tensors_added).put<uint64_t>(entries.size() + num_entries_added);
    for (const auto& entry : entries) out.raw(entry);
    for (const auto& tensor : tensors) out.raw(tensor);
    out.bytes.resize((out.bytes.size() + alignment - 1) / alignment * alignment);
    return out.raw(data).bytes;
  }
};

template <class T>
std::string gguf_scalar(std::string_view key, uint32_t type, T value) {
  return ByteWriter().string(key).put(type).put(value).bytes;
}

inline std::string gguf_text(std::string_view key, std::string_view text) {
  return ByteWriter().string(key).put<uint32_t>(8).string(text).bytes;
}

inline std::string gguf_texts(std::string_view key, const std::vector<std::string>& texts) {
  ByteWriter out;
  out.string(key).put<uint32_t>(9).put<uint32_t>(8).put<uint64_t>(texts.size());
  for (const auto& text : texts) out.string(text);
  return out.bytes;
}

template <class T>
std::string gguf_array(std::string_view key, uint32_t type, const std::vector<T>& values) {
  ByteWriter out;
  out.string(key).put<uint32_t>(9).put(type).put<uint64_t>(values.size());
  for (const T value : values) out.put(value);
  return out.bytes;
}

// `dimensions` as the file has them: innermost first.
inline std::string gguf_tensor(std::string_view name, const std::vector<uint64_t>& dimensions, uint32_t type, uint64_t offset) {
  ByteWriter out;
  out.string(name).put(static_cast<uint32_t>(dimensions.size()));
  for (const uint64_t size : dimensions) out.put(size);
  return out.put(type).put(offset).bytes;
}

// A safetensors file with this header text and data.
inline std::string safetensors_bytes(std::string_view header, std::string_view data) {
  return ByteWriter().put<uint64_t>(header.size()).raw(header).raw(data).bytes;
}

}  // namespace millrace
