#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "millrace/base/status.h"

namespace millrace {

// A whole file mapped read-only. The bytes are untrusted; they stay valid while this object lives.
class MappedFile {
 public:
  static Result<MappedFile> open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Tells the kernel that the pages behind `range` are not needed soon; they are read again when touched.
  void drop(std::span<const std::byte> range) const;

 private:
  MappedFile() = default;
  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// A small text file as a string; larger than `max_bytes` is an error that says so.
Result<std::string> read_text_file(const std::string& path, std::size_t max_bytes = std::size_t{256} << 20);

}  // namespace millrace
