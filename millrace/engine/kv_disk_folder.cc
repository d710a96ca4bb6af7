#include "millrace/engine/kv_disk_folder.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>

#include "millrace/base/check.h"
#include "millrace/base/checksum.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr uint32_t kFormat = 1;
constexpr std::string_view kMagic = "millrace kv\n", kExtension = ".kv", kPartial = "partial", kLock = "lock", kSecret = "secret";
constexpr std::size_t kSecretBytes = 32, kPrefixHex = 16, kDigestHex = 64;

std::string hex(std::span<const uint8_t> bytes) {
  std::string text;
  for (const uint8_t byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

bool is_hex(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

// Of a file's name without its folder: its group and digest; absent: it is no block's.
std::optional<KvBlockKey> key_of(std::string_view name) {
  if (name.size() < kPrefixHex + 2 + 1 + kDigestHex + kExtension.size() || !name.ends_with(kExtension)) return std::nullopt;
  name.remove_suffix(kExtension.size());
  const std::string_view digest = name.substr(name.size() - kDigestHex), rest = name.substr(0, name.size() - kDigestHex);
  if (!is_hex(digest) || !is_hex(rest.substr(0, kPrefixHex)) || rest[kPrefixHex] != '-' || rest.back() != '-') return std::nullopt;
  KvBlockKey key;
  const char *group = rest.data() + kPrefixHex + 1, *end = rest.data() + rest.size() - 1;
  if (const auto parsed = std::from_chars(group, end, key.group); parsed.ec != std::errc() || parsed.ptr != end || key.group < 0)
    return std::nullopt;
  for (std::size_t i = 0; i < key.digest.bytes.size(); ++i)
    std::from_chars(digest.data() + 2 * i, digest.data() + 2 * i + 2, key.digest.bytes[i], 16);
  return key;
}

Status read_all(int file, const std::string& path, void* to, int64_t num_bytes, int64_t offset) {
  auto* at = static_cast<char*>(to);
  while (num_bytes > 0) {
    const ssize_t count = ::pread(file, at, static_cast<std::size_t>(num_bytes), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno_status(path, "read");
    if (count == 0) return Status::data_loss(fmt::format("{}: ends too early", path));
    at += count, num_bytes -= count, offset += count;
  }
  return Status::ok();
}

Status write_all(int file, const std::string& path, const void* from, int64_t num_bytes) {
  const auto* at = static_cast<const char*>(from);
  while (num_bytes > 0) {
    const ssize_t count = ::write(file, at, static_cast<std::size_t>(num_bytes));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno_status(path, "write");
    at += count, num_bytes -= count;
  }
  return Status::ok();
}

Status make_folder(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return errno_status(path, "make the folder");
  return Status::ok();
}

// As untrusted as any file: it must be the user's own, no link, and writable for nobody else.
Status check_own(int file, const std::string& path, struct stat& info) {
  if (::fstat(file, &info) != 0) return errno_status(path, "read");
  if (!S_ISREG(info.st_mode)) return Status::invalid_argument(fmt::format("{}: is not a regular file", path));
  if (info.st_uid != ::geteuid() || (info.st_mode & 022) != 0)
    return Status::invalid_argument(fmt::format("{}: belongs to somebody else, or others may write it", path));
  return Status::ok();
}

}  // namespace

struct KvDiskFolder::Header {
  char magic[16];
  uint32_t format;
  uint32_t group;
  int64_t block_bytes;
  std::array<uint8_t, 32> fingerprint;
  std::array<uint8_t, 32> digest;
  uint64_t block_checksum;
  uint64_t reserved[2];
  uint64_t checksum;  // of the header with 0 here
};

KvDiskFolder::Header KvDiskFolder::header(const KvBlockKey& key, uint64_t block_checksum) const {
  static_assert(sizeof(Header) == kHeaderBytes, "the layout of the files");
  Header header{};
  std::copy(kMagic.begin(), kMagic.end(), header.magic);
  header.format = kFormat;
  header.group = static_cast<uint32_t>(key.group);
  header.block_bytes = block_bytes(key.group);
  header.fingerprint = fingerprint_;
  header.digest = key.digest.bytes;
  header.block_checksum = block_checksum;
  header.checksum = checksum(std::as_bytes(std::span(&header, 1)));
  return header;
}

Result<std::unique_ptr<KvDiskFolder>> KvDiskFolder::open(const std::string& path, const std::string& fingerprint,
                                                         std::vector<int64_t> block_bytes) {
  // Without slashes at its end the folder itself is the last part of the path, and gets its mode.
  const std::size_t end = path.find_last_not_of('/');
  std::unique_ptr<KvDiskFolder> folder(new KvDiskFolder(end == std::string::npos ? path : path.substr(0, end + 1), std::move(block_bytes)));
  std::string text = fmt::format("{} {} {}", kFormat, kKvBlockTokens, folder->block_bytes_.size());
  for (const int64_t bytes : folder->block_bytes_) text += fmt::format(" {}", bytes);
  text += " " + fingerprint;
  MR_CHECK(EVP_Digest(text.data(), text.size(), folder->fingerprint_.data(), nullptr, EVP_sha256(), nullptr) == 1, "SHA-256");
  folder->prefix_ = hex(std::span(folder->fingerprint_).first(kPrefixHex / 2)) + "-";
  std::error_code ignored;
  fs::create_directories(fs::path(folder->path_).parent_path(), ignored);
  MR_RETURN_IF_ERROR(make_folder(folder->path_));
  MR_RETURN_IF_ERROR(folder->lock());
  MR_RETURN_IF_ERROR(folder->read_secret());
  return folder;
}

// One process at a time: two would not know of each other's files, and together hold more than each may.
Status KvDiskFolder::lock() {
  const std::string path = fmt::format("{}/{}", path_, kLock);
  lock_ = std::make_unique<FileDescriptor>(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (lock_->fd < 0) return errno_status(path, "write");
  if (::flock(lock_->fd, LOCK_EX | LOCK_NB) == 0) return Status::ok();
  if (errno == EWOULDBLOCK) return Status::unavailable(fmt::format("{}: another process uses the folder", path_));
  return errno_status(path, "lock");
}

Status KvDiskFolder::read_secret() {
  const std::string path = fmt::format("{}/{}", path_, kSecret), partial = fmt::format("{}/{}", path_, kPartial);
  secret_.resize(kSecretBytes);
  FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (file.fd < 0 && errno == ENOENT) {
    if (RAND_bytes(reinterpret_cast<unsigned char*>(secret_.data()), kSecretBytes) != 1)
      return Status::internal("no random bytes for the secret");
    const FileDescriptor made(::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (made.fd < 0) return errno_status(partial, "write");
    MR_RETURN_IF_ERROR(write_all(made.fd, partial, secret_.data(), kSecretBytes));
    // Without it every file of the folder is lost, so it is worth the wait.
    if (::fsync(made.fd) != 0 || ::rename(partial.c_str(), path.c_str()) != 0) return errno_status(path, "write");
    return Status::ok();
  }
  if (file.fd < 0) return errno_status(path, "read");
  struct stat info{};
  MR_RETURN_IF_ERROR(check_own(file.fd, path, info));
  if (info.st_size != kSecretBytes || (info.st_mode & 077) != 0) {
    return Status::invalid_argument(
        fmt::format("{}: has {} bytes and mode {:04o}, expected {} that nobody else may read; without the file the "
                    "folder begins anew",
                    path, info.st_size, info.st_mode & 07777, kSecretBytes));
  }
  return read_all(file.fd, path, secret_.data(), kSecretBytes, 0);
}

std::string KvDiskFolder::name_of(const KvBlockKey& key) const {
  const std::string digest = hex(key.digest.bytes);
  return fmt::format("{}/{}{}-{}{}", digest.substr(0, 2), prefix_, key.group, digest, kExtension);
}

KvDiskFolder::Listing KvDiskFolder::list() const {
  Listing listing;
  const auto stranger = [&](const fs::path& path) {
    ++listing.num_strangers;
    listing.stranger = path.string();
  };
  std::error_code error;
  for (fs::directory_iterator it(path_, error), end; !error && it != end; it.increment(error)) {
    const std::string folder = it->path().filename().string();
    if (folder == kLock || folder == kSecret || folder == kPartial) continue;
    std::error_code ignored;
    if (folder.size() != 2 || !is_hex(folder) || !it->is_directory(ignored) || it->is_symlink(ignored)) {
      stranger(it->path());
      continue;
    }
    for (fs::directory_iterator block(it->path(), ignored); !ignored && block != end; block.increment(ignored)) {
      const std::string name = block->path().filename().string();
      const std::optional<KvBlockKey> key = key_of(name);
      struct stat info{};
      if (!key || ::lstat(block->path().c_str(), &info) != 0 || !S_ISREG(info.st_mode)) {
        stranger(block->path());
        continue;
      }
      File file{folder + "/" + name, info.st_size, int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec, std::nullopt};
      if (name.starts_with(prefix_) && key->group < num_groups() && name_of(*key) == file.name) file.key = key;
      listing.files.push_back(std::move(file));
    }
  }
  std::ranges::sort(listing.files, {}, &File::used_ns);
  return listing;
}

Status KvDiskFolder::write(const KvBlockKey& key, std::span<const std::byte> block) const {
  MR_CHECK(static_cast<int64_t>(block.size()) == block_bytes(key.group), "a block of the group's size");
  const std::string name = name_of(key), path = fmt::format("{}/{}", path_, name), partial = fmt::format("{}/{}", path_, kPartial);
  MR_RETURN_IF_ERROR(make_folder(path.substr(0, path.rfind('/'))));
  const Header head = header(key, checksum(block));
  Status status;
  {
    const FileDescriptor file(::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (file.fd < 0) return errno_status(partial, "write");
    status = write_all(file.fd, partial, &head, sizeof head);
    if (status.is_ok()) status = write_all(file.fd, partial, block.data(), static_cast<int64_t>(block.size()));
  }
  // The disk is not waited for: what a power failure leaves is seen by its checksum, and was only a copy.
  if (status.is_ok() && ::rename(partial.c_str(), path.c_str()) != 0) status = errno_status(path, "rename to it");
  if (!status.is_ok()) ::unlink(partial.c_str());
  return status;
}

Status KvDiskFolder::read(const KvBlockKey& key, std::span<std::byte> block) const {
  const std::string path = fmt::format("{}/{}", path_, name_of(key));
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (file.fd < 0) return errno_status(path, "read");
  struct stat info{};
  MR_RETURN_IF_ERROR(check_own(file.fd, path, info));
  const auto damaged = [&](const std::string& what) { return Status::data_loss(fmt::format("{}: {}", path, what)); };
  const auto foreign = [&](std::string_view what) { return Status::invalid_argument(fmt::format("{}: {}", path, what)); };
  Header found{};
  if (info.st_size < kHeaderBytes) return damaged(fmt::format("has {} bytes, expected {}", info.st_size, file_bytes(key.group)));
  MR_RETURN_IF_ERROR(read_all(file.fd, path, &found, sizeof found, 0));
  const Header want = header(key, found.block_checksum);
  if (!std::equal(std::begin(found.magic), std::end(found.magic), std::begin(want.magic))) return foreign("is no file of KV blocks");
  if (found.format != want.format) return foreign(fmt::format("has layout {}, expected {}", found.format, want.format));
  if (found.fingerprint != want.fingerprint)
    return foreign(fmt::format("was made of fingerprint {}, expected {}: another model, build, KV type or instruction set",
                               hex(std::span(found.fingerprint).first(8)), hex(std::span(want.fingerprint).first(8))));
  if (found.digest != want.digest || found.group != want.group)
    return foreign(
        fmt::format("holds block {} of group {}, which is not what its name says", hex(std::span(found.digest).first(8)), found.group));
  if (std::memcmp(&found, &want, sizeof found) != 0) return damaged("the checksum of its header is wrong");
  if (info.st_size != file_bytes(key.group)) return damaged(fmt::format("has {} bytes, expected {}", info.st_size, file_bytes(key.group)));
  MR_RETURN_IF_ERROR(read_all(file.fd, path, block.data(), static_cast<int64_t>(block.size()), kHeaderBytes));
  if (checksum(block) != found.block_checksum) return damaged("the checksum of its block is wrong");
  return Status::ok();
}

Status KvDiskFolder::remove(const std::string& name) const {
  const std::string path = fmt::format("{}/{}", path_, name);
  {
    const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    if (file.fd < 0) return errno_status(path, "read");
    struct stat info{};
    MR_RETURN_IF_ERROR(check_own(file.fd, path, info));
    // The beginning of what an interrupted start of the machine left is cut off, or zeros.
    char magic[kMagic.size()] = {};
    const ssize_t count = ::pread(file.fd, magic, sizeof magic, 0);
    const std::string_view found(magic, count < 0 ? 0 : static_cast<std::size_t>(count));
    if (found != kMagic.substr(0, found.size()) && std::ranges::any_of(found, [](char c) { return c != 0; }))
      return Status::invalid_argument(fmt::format("{}: is no file of KV blocks", path));
  }
  if (::unlink(path.c_str()) != 0) return errno_status(path, "remove");
  return Status::ok();
}

void KvDiskFolder::set_used(const std::string& name, int64_t used_ns) const {
  timespec times[2] = {};
  for (timespec& time : times) time.tv_sec = used_ns / 1'000'000'000, time.tv_nsec = used_ns % 1'000'000'000;
  ::utimensat(AT_FDCWD, fmt::format("{}/{}", path_, name).c_str(), times, AT_SYMLINK_NOFOLLOW);  // a file that is gone needs no time
}

}  // namespace millrace
