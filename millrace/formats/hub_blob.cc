#include "millrace/formats/hub_blob.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/evp.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

namespace millrace {
namespace {

EVP_MD_CTX* md(void* context) { return static_cast<EVP_MD_CTX*>(context); }

Status hash_failed() { return Status::internal("the checksum could not be computed (OpenSSL)"); }

// Waits for the lock, held until the descriptor is closed.
Result<int> lock_file(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (file < 0) return Status::unavailable(fmt::format("{}: cannot create: {}", path, std::strerror(errno)));
  while (::flock(file, LOCK_EX) != 0) {
    if (errno == EINTR) continue;
    ::close(file);
    return Status::unavailable(fmt::format("{}: cannot lock: {}", path, std::strerror(errno)));
  }
  return file;
}

}  // namespace

void BlobFile::FreeHash::operator()(void* context) const { EVP_MD_CTX_free(md(context)); }

bool is_blob_id(std::string_view id) {
  return (id.size() == 40 || id.size() == 64) && id.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

Status BlobFile::failed(std::string_view doing) const {
  // Not kUnavailable: trying again would not help.
  const bool is_full = errno == ENOSPC || errno == EDQUOT;
  return {is_full ? StatusCode::kResourceExhausted : StatusCode::kInvalidArgument,
          fmt::format("{}: cannot {}: {}", incomplete_path_, doing, std::strerror(errno))};
}

Result<std::unique_ptr<BlobFile>> BlobFile::open(const std::string& path, const std::string& lock_path, std::string_view id,
                                                 int64_t total_bytes) {
  std::unique_ptr<BlobFile> blob(new BlobFile());
  blob->path_ = path;
  blob->incomplete_path_ = path + ".incomplete";
  blob->id_ = id;
  blob->total_bytes_ = total_bytes;
  MR_ASSIGN_OR_RETURN(blob->lock_, lock_file(lock_path));
  struct stat info{};
  if (::stat(path.c_str(), &info) == 0 && info.st_size == total_bytes) {
    blob->is_published_ = true;
    blob->received_bytes_ = total_bytes;
    return blob;
  }
  blob->file_ = ::open(blob->incomplete_path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (blob->file_ < 0) return blob->failed("create");
  if (::fstat(blob->file_, &info) != 0) return blob->failed("stat");
  if (info.st_size > total_bytes) {
    MR_RETURN_IF_ERROR(blob->begin(0));
  } else {
    MR_RETURN_IF_ERROR(blob->hash_what_is_there());
  }
  return blob;
}

BlobFile::~BlobFile() {
  if (file_ >= 0) ::close(file_);
  if (lock_ >= 0) ::close(lock_);
}

Status BlobFile::start_hash() {
  if (!hash_) hash_.reset(EVP_MD_CTX_new());
  const bool is_git = id_.size() == 40;
  if (!hash_ || EVP_DigestInit_ex(md(hash_.get()), is_git ? EVP_sha1() : EVP_sha256(), nullptr) != 1) return hash_failed();
  if (!is_git) return Status::ok();
  const std::string header = fmt::format("blob {}", total_bytes_);  // git hashes this and a zero byte before the content
  return EVP_DigestUpdate(md(hash_.get()), header.c_str(), header.size() + 1) == 1 ? Status::ok() : hash_failed();
}

Status BlobFile::hash_what_is_there() {
  MR_RETURN_IF_ERROR(start_hash());
  std::vector<char> chunk(1 << 20);
  while (true) {
    const ssize_t count = ::read(file_, chunk.data(), chunk.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return failed("read");
    if (count == 0) return Status::ok();
    if (EVP_DigestUpdate(md(hash_.get()), chunk.data(), static_cast<std::size_t>(count)) != 1) return hash_failed();
    received_bytes_ += count;
  }
}

Status BlobFile::begin(int64_t offset) {
  if (offset == received_bytes_ && hash_) return Status::ok();
  if (offset != 0) return Status::internal(fmt::format("{}: holds {} bytes, not {}", incomplete_path_, received_bytes_, offset));
  if (::ftruncate(file_, 0) != 0 || ::lseek(file_, 0, SEEK_SET) != 0) return failed("truncate");
  received_bytes_ = 0;
  return start_hash();
}

Status BlobFile::write(std::span<const char> bytes) {
  if (static_cast<int64_t>(bytes.size()) > total_bytes_ - received_bytes_) {
    return Status::data_loss(fmt::format("the server sent more than the {} bytes it announced", total_bytes_));
  }
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t count = ::write(file_, bytes.data() + done, bytes.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return failed("write");
    if (EVP_DigestUpdate(md(hash_.get()), bytes.data() + done, static_cast<std::size_t>(count)) != 1) return hash_failed();
    done += static_cast<std::size_t>(count);
    received_bytes_ += count;
  }
  if (keep_going && !keep_going()) return Status::cancelled("cancelled; the next download resumes here");
  return Status::ok();
}

Status BlobFile::publish() {
  if (is_published_) return Status::ok();
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned size = 0;
  if (EVP_DigestFinal_ex(md(hash_.get()), digest.data(), &size) != 1) return hash_failed();
  std::string hex;
  for (unsigned i = 0; i < size; ++i) hex += fmt::format("{:02x}", digest[i]);
  if (hex != id_) {
    ::unlink(incomplete_path_.c_str());
    return Status::data_loss(fmt::format("has checksum {}, expected {}; what was downloaded is deleted", hex, id_));
  }
  if (::fsync(file_) != 0) return failed("flush");
  if (::rename(incomplete_path_.c_str(), path_.c_str()) != 0) return failed("rename");
  is_published_ = true;
  return Status::ok();
}

}  // namespace millrace
