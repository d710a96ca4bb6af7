#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/base/mapped_file.h"
#include "millrace/base/status.h"
#include "millrace/formats/source_tensor.h"

namespace millrace {

// The type ids of GGUF metadata values.
enum class GgufType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

std::string_view gguf_type_name(GgufType type);  // "uint32", "string"

// One metadata entry, still as bytes of the file. `bytes` holds the scalars (unaligned, little-endian), or for strings each one's
// 8-byte length followed by its characters.
struct GgufValue {
  std::string_view key;
  bool is_array = false;
  GgufType type = GgufType::kUint8;  // of the value, or of the array's elements; never kArray
  int64_t count = 1;                 // elements; 1 for a scalar
  std::span<const std::byte> bytes;
};

// A GGUF model, version 2 or 3, little-endian: one mapped file, or a split set ("name-00001-of-00003.gguf" and its siblings) seen
// as one. Format: github.com/ggml-org/ggml, docs/gguf.md. Everything in the file is untrusted; open() refuses
//   counts and lengths that the rest of the file cannot hold (before anything is allocated for them), keys over 64 KiB,
//   more than 4 dimensions, nested arrays, unknown type ids, duplicate keys or tensor names, an alignment that is no power of two,
//   tensors that are unaligned, overlap or end beyond the file, and split sets that are incomplete or disagree.
// Views into it stay valid while it lives, also after it was moved. Any thread may read.
class GgufFile {
 public:
  static Result<GgufFile> open(const std::string& path);

  uint32_t version() const { return version_; }
  std::span<const GgufValue> metadata() const { return metadata_; }   // of the first file of a split set; file order
  std::span<const SourceTensor> tensors() const { return tensors_; }  // file order, over all files of a split set
  std::span<const MappedFile> files() const { return files_; }

  const GgufValue* find(std::string_view key) const;

  // Typed reading; absent when the key is missing, has another kind of value, or does not fit. integer() takes every integer type,
  // number() those and floats, the array forms likewise. Strings are views into the file and may hold any bytes.
  std::optional<int64_t> integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::string_view> string(std::string_view key) const;
  std::optional<std::vector<std::string_view>> strings(std::string_view key) const;
  std::optional<std::vector<int64_t>> integers(std::string_view key) const;
  std::optional<std::vector<float>> floats(std::string_view key) const;

 private:
  GgufFile() = default;

  uint32_t version_ = 0;
  std::vector<MappedFile> files_;
  std::vector<GgufValue> metadata_;
  std::vector<std::size_t> by_key_;  // positions in metadata_, sorted by key (no hashing: a hostile file could choose collisions)
  std::vector<SourceTensor> tensors_;
};

}  // namespace millrace
