#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "millrace/base/status.h"

namespace millrace {

// What tells a file from the one that replaces or changes it, as it was when the file was opened.
struct FileIdentity {
  uint64_t device = 0, inode = 0;
  int64_t size = 0, modified_ns = 0, changed_ns = 0;
};

// A whole file mapped read-only. The bytes are untrusted; they stay valid while this object lives.
class MappedFile {
 public:
  static Result<MappedFile> open(const std::string& path);

  // A file that this program wrote earlier: it must be the user's own, no link, and writable for nobody else. It lies at a multiple of 2
  // MB, so that the system can map it in huge pages where its pages are.
  static Result<MappedFile> open_own(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const FileIdentity& identity() const { return identity_; }

  // Tells the kernel that the pages behind `range` are not needed soon; they are read again when touched.
  void drop(std::span<const std::byte> range) const;
  // Tells it that they are needed next: it may begin to read them.
  void will_need(std::span<const std::byte> range) const;

 private:
  MappedFile() = default;
  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  FileIdentity identity_;
};

// From now on the program ends with a message that names the file when one of the mapped files was cut short under it: reading pages that
// are gone raises SIGBUS. For main().
void explain_lost_pages();

// A small text file as a string; larger than `max_bytes` is an error that says so.
Result<std::string> read_text_file(const std::string& path, std::size_t max_bytes = std::size_t{256} << 20);

}  // namespace millrace
