#include "millrace/base/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

namespace millrace {
namespace {

struct FileDescriptor {
  int fd = -1;
  ~FileDescriptor() {
    if (fd >= 0) ::close(fd);
  }
};

Status errno_status(const std::string& path, const char* doing) {
  const int error = errno;
  return {error == ENOENT ? StatusCode::kNotFound : StatusCode::kUnavailable, fmt::format("{}: cannot {}: {}", path, doing, std::strerror(error))};
}

Status open_regular(const std::string& path, FileDescriptor& file, std::size_t& size) {
  file.fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file.fd < 0) return errno_status(path, "open");
  struct stat info {};
  if (::fstat(file.fd, &info) != 0) return errno_status(path, "stat");
  if (!S_ISREG(info.st_mode)) return Status::invalid_argument(fmt::format("{}: is not a regular file", path));
  size = static_cast<std::size_t>(info.st_size);
  return Status::ok();
}

}  // namespace

Result<MappedFile> MappedFile::open(const std::string& path) {
  FileDescriptor descriptor;
  MappedFile file;
  file.path_ = path;
  MR_RETURN_IF_ERROR(open_regular(path, descriptor, file.size_));
  if (file.size_ > 0) {
    void* address = ::mmap(nullptr, file.size_, PROT_READ, MAP_PRIVATE, descriptor.fd, 0);
    if (address == MAP_FAILED) {
      file.size_ = 0;
      return errno_status(path, "map");
    }
    file.data_ = static_cast<const std::byte*>(address);
  }
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::drop(std::span<const std::byte> range) const {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(range.data()) + page - 1) / page * page;
  const auto end = reinterpret_cast<std::uintptr_t>(range.data() + range.size()) / page * page;
  if (end > begin) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

Result<std::string> read_text_file(const std::string& path, std::size_t max_bytes) {
  FileDescriptor descriptor;
  std::size_t size = 0;
  MR_RETURN_IF_ERROR(open_regular(path, descriptor, size));
  if (size > max_bytes) return Status::resource_exhausted(fmt::format("{}: has {} bytes, at most {} are accepted", path, size, max_bytes));
  std::string text(size, '\0');
  std::size_t done = 0;
  while (done < size) {
    const ssize_t count = ::read(descriptor.fd, text.data() + done, size - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno_status(path, "read");
    if (count == 0) break;
    done += static_cast<std::size_t>(count);
  }
  text.resize(done);
  return text;
}

}  // namespace millrace
