#include "millrace/base/file_descriptor.h"
#include "millrace/base/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <utility>

namespace millrace {
namespace {

Status open_regular(const std::string& path, int flags, FileDescriptor& file, struct stat& info) {
  // Without O_NONBLOCK, opening a pipe would wait for someone to write to it. Regular files do not know the flag.
  file.fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | flags);
  if (file.fd < 0) return errno_status(path, "open");
  if (::fstat(file.fd, &info) != 0) return errno_status(path, "stat");
  if (!S_ISREG(info.st_mode)) return Status::invalid_argument(fmt::format("{}: is not a regular file", path));
  return Status::ok();
}

int64_t nanoseconds(const timespec& time) { return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec; }

FileIdentity identity_of(const struct stat& info) {
  return {info.st_dev, info.st_ino, info.st_size, nanoseconds(info.st_mtim), nanoseconds(info.st_ctim)};
}

// What is mapped, for a signal handler to read: it may take no lock and no memory. Beyond the table's end files are mapped without being
// named.
struct MappedRange {
  std::atomic<std::uintptr_t> begin{0}, end{0};  // 0: a free place
  char path[1024];
};
MappedRange g_mapped[256];
std::mutex g_mapped_mutex;  // of those who write

void remember(const std::byte* data, std::size_t size, const std::string& path) {
  const std::lock_guard lock(g_mapped_mutex);
  for (MappedRange& range : g_mapped) {
    if (range.begin.load() != 0) continue;
    range.path[path.copy(range.path, sizeof range.path - 1)] = '\0';
    range.end.store(reinterpret_cast<std::uintptr_t>(data) + size);
    range.begin.store(reinterpret_cast<std::uintptr_t>(data));
    return;
  }
}

void forget(const std::byte* data) {
  const std::lock_guard lock(g_mapped_mutex);
  for (MappedRange& range : g_mapped) {
    if (range.begin.load() == reinterpret_cast<std::uintptr_t>(data)) range.begin.store(0);
  }
}

void say(const char* text) {
  if (::write(STDERR_FILENO, text, std::strlen(text)) < 0) return;  // nobody to tell
}

void on_bus_error(int, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (const MappedRange& range : g_mapped) {
    const std::uintptr_t begin = range.begin.load();
    if (begin == 0 || address < begin || address >= range.end.load()) continue;
    static std::atomic_flag is_said = ATOMIC_FLAG_INIT;  // by the first of the threads that came upon it; the others wait for the end
    while (is_said.test_and_set()) ::pause();
    say("\nerror: ");
    say(range.path);
    say(": cannot be read any more: it was cut short or overwritten while in use, or its disk failed. Replace a model's files by renaming "
        "others over them.\n");
    ::_exit(2);
  }
  ::signal(SIGBUS, SIG_DFL);  // not one of ours: the instruction that failed is tried once more, without this handler
}

}  // namespace

void explain_lost_pages() {
  struct sigaction action{};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  ::sigaction(SIGBUS, &action, nullptr);
}

Result<MappedFile> MappedFile::open(const std::string& path) {
  FileDescriptor descriptor;
  struct stat info{};
  MR_RETURN_IF_ERROR(open_regular(path, 0, descriptor, info));
  MappedFile file;
  file.path_ = path;
  file.identity_ = identity_of(info);
  if (info.st_size == 0) return file;
  void* address = ::mmap(nullptr, static_cast<std::size_t>(info.st_size), PROT_READ, MAP_PRIVATE, descriptor.fd, 0);
  if (address == MAP_FAILED) return errno_status(path, "map");
  file.data_ = static_cast<const std::byte*>(address);
  file.size_ = static_cast<std::size_t>(info.st_size);
  remember(file.data_, file.size_, path);
  return file;
}

Result<MappedFile> MappedFile::open_own(const std::string& path) {
  FileDescriptor descriptor;
  struct stat info{};
  MR_RETURN_IF_ERROR(open_regular(path, O_NOFOLLOW, descriptor, info));
  if (info.st_uid != ::geteuid() || (info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return Status::invalid_argument(fmt::format("{}: is owned by user {} with mode {:o}, expected user {} and no one else to write", path,
                                                info.st_uid, info.st_mode & 07777, ::geteuid()));
  }
  MappedFile file;
  file.path_ = path;
  file.identity_ = identity_of(info);
  if (info.st_size == 0) return file;
  // Room for the file and what aligning it may skip; what is left on both sides goes back.
  constexpr std::size_t kAlignment = std::size_t{2} << 20;
  const auto size = static_cast<std::size_t>(info.st_size), page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)),
             pages = (size + page - 1) / page * page;
  void* room = ::mmap(nullptr, pages + kAlignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return errno_status(path, "map");
  auto* begin = static_cast<std::byte*>(room);
  const std::size_t skipped = (kAlignment - reinterpret_cast<std::uintptr_t>(begin) % kAlignment) % kAlignment;
  if (skipped > 0) ::munmap(begin, skipped);
  if (kAlignment > skipped) ::munmap(begin + skipped + pages, kAlignment - skipped);
  void* address = ::mmap(begin + skipped, size, PROT_READ, MAP_PRIVATE | MAP_FIXED, descriptor.fd, 0);
  if (address == MAP_FAILED) {
    const Status status = errno_status(path, "map");
    ::munmap(begin + skipped, pages);
    return status;
  }
  ::madvise(address, size, MADV_HUGEPAGE);  // read it in huge pages where the file system can
  file.data_ = static_cast<const std::byte*>(address);
  file.size_ = size;
  remember(file.data_, file.size_, path);
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(identity_, other.identity_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ == nullptr) return;
  forget(data_);
  ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::drop(std::span<const std::byte> range) const {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(range.data()) + page - 1) / page * page;
  auto end = reinterpret_cast<std::uintptr_t>(range.data() + range.size());
  if (range.data() + range.size() != data_ + size_) end = end / page * page;  // the file's last page may go with its end
  if (end > begin) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void MappedFile::will_need(std::span<const std::byte> range) const {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(range.data()) / page * page,
             end = reinterpret_cast<std::uintptr_t>(range.data() + range.size());
  if (end > begin) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_WILLNEED);
}

Result<std::string> read_text_file(const std::string& path, std::size_t max_bytes) {
  FileDescriptor descriptor;
  struct stat info{};
  MR_RETURN_IF_ERROR(open_regular(path, 0, descriptor, info));
  const auto size = static_cast<std::size_t>(info.st_size);
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
