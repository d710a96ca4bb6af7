#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "millrace/base/file_descriptor.h"
#include "millrace/base/status.h"
#include "millrace/engine/prefix_digest.h"

namespace millrace {

struct KvBlockKey {
  int64_t group = 0;
  BlockDigest digest;
  friend bool operator==(const KvBlockKey&, const KvBlockKey&) = default;
};

struct KvBlockKeyHash {
  std::size_t operator()(const KvBlockKey& key) const { return BlockDigestHash()(key.digest) + static_cast<std::size_t>(key.group); }
};

// The folder of the disk tier and the form of its files. Knows no order, limit or thread.
//
//   DIR/lock                                    held by the process that uses the folder
//   DIR/secret                                  32 random bytes that key the digests (PrefixHasher)
//   DIR/3f/0123456789abcdef-0-3f97...e1.kv      a block: fingerprint (its first 8 bytes), group, digest
//
// Folders that are made here have mode 0700, files 0600. A block's file is a header and the block as it lies in memory.
class KvDiskFolder {
 public:
  static constexpr int64_t kHeaderBytes = 128;

  // Makes what is missing. `block_bytes`: of each group. Errors: the folder or the secret cannot be made, read or trusted, or another
  // process uses the folder (kUnavailable).
  static Result<std::unique_ptr<KvDiskFolder>> open(const std::string& path, const std::string& fingerprint,
                                                    std::vector<int64_t> block_bytes);

  const std::string& path() const { return path_; }
  const std::string& secret() const { return secret_; }
  int64_t num_groups() const { return static_cast<int64_t>(block_bytes_.size()); }
  int64_t block_bytes(int64_t group) const { return block_bytes_[static_cast<std::size_t>(group)]; }
  int64_t file_bytes(int64_t group) const { return kHeaderBytes + block_bytes(group); }

  // A file with the name of a block, below the folder.
  struct File {
    std::string name;                // "3f/0123456789abcdef-0-3f97...e1.kv"
    int64_t bytes = 0, used_ns = 0;  // used_ns: since 1970
    std::optional<KvBlockKey> key;   // absent: of another fingerprint
  };
  struct Listing {
    std::vector<File> files;  // longest unused first
    std::string stranger;     // one of the files that have no such name; empty: there are none
    int64_t num_strangers = 0;
  };
  Listing list() const;
  std::string name_of(const KvBlockKey& key) const;

  // Writes the file beside and renames it: whoever reads it finds a whole one or none. One caller at a time. kResourceExhausted: the disk
  // is full.
  Status write(const KvBlockKey& key, std::span<const std::byte> block) const;
  // Reads and checks it all. kNotFound: there is none. kDataLoss: it is ours and damaged. Another error: it is not ours, or cannot be read;
  // `block` may hold anything then.
  Status read(const KvBlockKey& key, std::span<std::byte> block) const;
  // Deletes a file of ours; one that is not, behind the name of a block, is left alone (kInvalidArgument).
  Status remove(const std::string& name) const;
  void set_used(const std::string& name, int64_t used_ns) const;

 private:
  struct Header;
  KvDiskFolder(std::string path, std::vector<int64_t> block_bytes) : path_(std::move(path)), block_bytes_(std::move(block_bytes)) {}
  Status lock();
  Status read_secret();
  Header header(const KvBlockKey& key, uint64_t block_checksum) const;

  std::string path_;
  std::vector<int64_t> block_bytes_;  // [num_groups]
  std::string secret_;
  std::array<uint8_t, 32> fingerprint_{};  // SHA-256 of the given one, the sizes and the format
  std::string prefix_;                     // of the names of our files
  std::unique_ptr<FileDescriptor> lock_;
};

}  // namespace millrace
