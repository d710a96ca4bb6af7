#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "millrace/base/status.h"
#include "millrace/formats/hub_http.h"

namespace millrace {

// A blob's name on the hub is its checksum: 64 hex digits are the SHA-256 of its bytes (LFS files), 40 are git's SHA-1 of it.
bool is_blob_id(std::string_view id);

// A blob being received into "<path>.incomplete", its checksum computed as the bytes come. Opening takes up what an earlier attempt
// left there; publish() compares size and checksum and renames it to `path`. Holds a lock file against other processes meanwhile.
class BlobFile : public BodySink {
 public:
  static Result<std::unique_ptr<BlobFile>> open(const std::string& path, const std::string& lock_path, std::string_view id,
                                                int64_t total_bytes);
  ~BlobFile() override;

  int64_t received_bytes() const { return received_bytes_; }
  bool is_published() const { return is_published_; }  // another process was faster

  Status begin(int64_t offset) override;
  Status write(std::span<const char> bytes) override;
  Status publish();

  std::function<bool()> keep_going;  // asked after each write; false stops the transfer

 private:
  BlobFile() = default;
  Status hash_what_is_there();
  Status start_hash();
  Status failed(std::string_view doing) const;

  std::string path_, incomplete_path_, id_;
  int64_t total_bytes_ = 0, received_bytes_ = 0;
  bool is_published_ = false;
  int file_ = -1, lock_ = -1;
  struct FreeHash {
    void operator()(void* context) const;
  };
  std::unique_ptr<void, FreeHash> hash_;  // EVP_MD_CTX
};

}  // namespace millrace
