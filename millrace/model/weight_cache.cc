#include "millrace/model/weight_cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <vector>

#include "millrace/base/aligned_buffer.h"
#include "millrace/base/checksum.h"
#include "millrace/base/file_descriptor.h"
#include "millrace/base/process_memory.h"
#include "millrace/base/round_up.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr uint32_t kFormat = 1;
constexpr int64_t kChunkBytes = int64_t{2} << 20;  // that one checksum covers; also a huge page, at whose multiples the panels begin
constexpr std::string_view kExtension = ".packed", kPartial = ".partial";

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), &EVP_MD_CTX_free) {
    MR_CHECK(context_ != nullptr && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1, "OpenSSL has no SHA-256");
  }
  void add(const void* data, std::size_t num_bytes) { MR_CHECK(EVP_DigestUpdate(context_.get(), data, num_bytes) == 1, "SHA-256"); }
  template <class T>
    requires std::is_arithmetic_v<T>
  void add(T value) {
    add(&value, sizeof value);
  }
  // Lengths go first, so that no two lists give the same bytes.
  void add(std::string_view text) {
    add(static_cast<uint64_t>(text.size()));
    add(text.data(), text.size());
  }
  void add(const std::vector<int32_t>& numbers) {
    add(static_cast<uint64_t>(numbers.size()));
    add(numbers.data(), numbers.size() * sizeof(int32_t));
  }
  std::array<uint8_t, 32> finish() {
    std::array<uint8_t, 32> digest;
    MR_CHECK(EVP_DigestFinal_ex(context_.get(), digest.data(), nullptr) == 1, "SHA-256");
    return digest;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

// Which program packs: another build may pack the same file differently.
void add_program(Sha256& hash) {
  struct stat info{};
  if (::stat("/proc/self/exe", &info) != 0) return;
  hash.add(int64_t{info.st_size});
  hash.add(int64_t{info.st_mtim.tv_sec});
  hash.add(int64_t{info.st_mtim.tv_nsec});
}

void add_source(Sha256& hash, const MatrixSource& source) {
  hash.add(std::string_view(source.tensor->name));
  hash.add(source.transposed);
  hash.add(source.k);
  hash.add(source.row_map);
  hash.add(source.grouped != nullptr);
  if (source.grouped == nullptr) return;
  const GroupedWeights& grouped = *source.grouped;
  hash.add(static_cast<int>(grouped.kind));
  for (const int64_t number : {grouped.rows, grouped.k, grouped.group_size, grouped.stored_bytes}) hash.add(number);
  hash.add(static_cast<int>(grouped.scale_dtype));
  hash.add(grouped.codebook.data(), sizeof grouped.codebook);
  hash.add(grouped.columns);
}

// "SmolLM2-135M-Instruct.Q4_1-0123456789abcdef.packed": for people; the number tells models of the same name in different folders,
// and the variants of one.
std::string file_name(const std::string& model_path, const std::string& family, const std::string& variant) {
  std::error_code error;
  fs::path path = fs::weakly_canonical(model_path, error);
  if (error) path = model_path;
  Sha256 hash;
  hash.add(std::string_view(path.native()));
  hash.add(std::string_view(family));
  if (!variant.empty()) hash.add(std::string_view(variant));
  const auto digest = hash.finish();
  std::string name = path.extension() == ".gguf" ? path.stem().string() : path.filename().string();
  name = name.substr(0, 80);
  for (char& c : name) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' || c == '-' || c == '_';
    if (!plain) c = '_';
  }
  name += '-';
  for (int i = 0; i < 8; ++i) name += fmt::format("{:02x}", digest[static_cast<std::size_t>(i)]);
  return name + std::string(kExtension);
}

Status write_at(int file, const std::string& path, const void* data, int64_t num_bytes, int64_t offset) {
  const auto* from = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t count = ::pwrite(file, from, static_cast<std::size_t>(num_bytes), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno_status(path, "write");
    from += count, num_bytes -= count, offset += count;
  }
  return Status::ok();
}

}  // namespace

std::array<uint8_t, 32> packed_weights_key(const Checkpoint& checkpoint, const Weights& planned, const std::string& variant) {
  Sha256 hash;
  hash.add(kFormat);
  hash.add(std::string_view(MILLRACE_VERSION));
  add_program(hash);
  for (const FileIdentity& file : checkpoint.file_identities()) {
    for (const uint64_t number : {file.device, file.inode}) hash.add(number);
    for (const int64_t number : {file.size, file.modified_ns, file.changed_ns}) hash.add(number);
  }
  hash.add(std::string_view(json::serialize(checkpoint.config())));
  hash.add(std::string_view(variant));
  for (const SourceTensor& tensor : checkpoint.tensors()) {
    hash.add(std::string_view(tensor.name));
    hash.add(static_cast<int>(tensor.dtype));
    hash.add(static_cast<uint64_t>(tensor.data.size()));
    for (const int64_t size : tensor.shape) hash.add(size);
  }
  for (std::size_t i = 0; i < planned.size(); ++i) {
    const auto id = static_cast<WeightId>(i);
    add_source(hash, planned.linear(id).weight);
    hash.add(weight_class_name(planned[id].weight_class()));
    hash.add(planned[id].bytes());
  }
  return hash.finish();
}

struct WeightCache::Header {
  char magic[16];
  uint32_t format;
  uint32_t header_bytes;
  int64_t file_bytes, panels_offset, panels_bytes, chunk_bytes, num_chunks;
  std::array<uint8_t, 32> key;
  uint64_t checksum;  // of the header with 0 here; then of each chunk a uint64_t
};

WeightCache::Header WeightCache::header() const {
  Header header{};
  std::memcpy(header.magic, "millrace weights", sizeof header.magic);
  header.format = kFormat;
  header.header_bytes = sizeof header;
  header.panels_bytes = panels_bytes_;
  header.chunk_bytes = kChunkBytes;
  header.num_chunks = (panels_bytes_ + kChunkBytes - 1) / kChunkBytes;
  header.panels_offset = round_up(round_up(sizeof header, 64) + round_up(header.num_chunks * 8, 64), kChunkBytes);
  header.file_bytes = header.panels_offset + panels_bytes_;
  header.key = key_;
  return header;
}

WeightCache::WeightCache(const Network& network, const Checkpoint& checkpoint, const Weights& planned, WeightCacheOptions options)
    : options_(std::move(options)), panels_bytes_(planned.bytes()) {
  if (!is_wanted()) return;
  key_ = packed_weights_key(checkpoint, planned, options_.variant);
  path_ = options_.folder + "/" + file_name(checkpoint.path(), network.family, options_.variant);
}

// The head of a file, all before the panels: the header and the chunks' checksums, padded with zeros to 64 bytes each.
Status WeightCache::check(const MappedFile& file, ThreadPool& pool) const {
  const auto bad = [&](std::string_view what) { return Status::data_loss(fmt::format("{}: {}", path_, what)); };
  Header want = header(), found{};
  if (file.bytes().size() < sizeof found) return bad("is too short to be a file of packed weights");
  std::memcpy(&found, file.bytes().data(), sizeof found);
  if (std::memcmp(found.magic, want.magic, sizeof found.magic) != 0) return bad("is no file of packed weights");
  if (found.format != kFormat || found.key != key_)
    return Status::invalid_argument(fmt::format("{}: was made of another version of the model, or by another millrace", path_));
  const uint64_t head_checksum = found.checksum;
  found.checksum = 0;
  if (std::memcmp(&found, &want, sizeof found) != 0) return bad("its header contradicts the model");
  if (static_cast<int64_t>(file.bytes().size()) != want.file_bytes)
    return bad(fmt::format("has {} bytes, expected {}", file.bytes().size(), want.file_bytes));
  std::vector<std::byte> head(static_cast<std::size_t>(round_up(sizeof found, 64) + round_up(want.num_chunks * 8, 64)));
  std::memcpy(head.data(), file.bytes().data(), head.size());
  std::memcpy(head.data(), &found, sizeof found);
  if (checksum(head) != head_checksum) return bad("the checksum of its header is wrong");

  std::vector<uint64_t> checksums(static_cast<std::size_t>(want.num_chunks));
  std::memcpy(checksums.data(), head.data() + round_up(sizeof found, 64), checksums.size() * 8);
  std::atomic<bool> wrong = false;
  const std::byte* panels = file.bytes().data() + want.panels_offset;
  pool.run_chunks(want.num_chunks, [&](int64_t chunk, int) {
    const int64_t begin = chunk * kChunkBytes, num_bytes = std::min(kChunkBytes, panels_bytes_ - begin);
    if (checksum({panels + begin, static_cast<std::size_t>(num_bytes)}) != checksums[static_cast<std::size_t>(chunk)]) wrong = true;
  });
  return wrong ? bad("the checksum of its weights is wrong") : Status::ok();
}

Status WeightCache::map(Weights& weights, ThreadPool& pool) const {
  auto opened = MappedFile::open_own(path_);
  if (!opened.is_ok()) return opened.status();
  const auto file = std::make_shared<const MappedFile>(std::move(opened).value());
  MR_RETURN_IF_ERROR(check(*file, pool));
  ::utimensat(AT_FDCWD, path_.c_str(), nullptr, 0);  // used now: others go first

  const std::span<const std::byte> panels = file->bytes().subspan(static_cast<std::size_t>(header().panels_offset));
  const bool stays = options_.place == WeightCacheOptions::Place::kBest
                         ? panels_bytes_ < 2 * kChunkBytes || mapping_memory(panels).huge_bytes >= panels_bytes_ / 2
                         : options_.place == WeightCacheOptions::Place::kMapped;
  if (stays) {
    weights.set_panels(panels.data(), file);
    return Status::ok();
  }
  auto memory = AlignedBuffer::allocate(panels.size());
  if (!memory.is_ok()) return memory.status();
  const auto copy = std::make_shared<AlignedBuffer>(std::move(memory).value());
  pool.run_chunks((panels_bytes_ + kChunkBytes - 1) / kChunkBytes, [&](int64_t chunk, int) {
    const auto begin = static_cast<std::size_t>(chunk * kChunkBytes);
    const std::span<const std::byte> from = panels.subspan(begin, std::min(static_cast<std::size_t>(kChunkBytes), panels.size() - begin));
    std::memcpy(copy->data() + begin, from.data(), from.size());
    file->drop(from);
  });
  weights.set_panels(copy->data(), copy);
  return Status::ok();
}

// Deletes the files longest unused until this one fits in max_bytes, and asks whether the disk has room.
Status WeightCache::make_room() const {
  struct Entry {
    fs::path path;
    int64_t size;
    fs::file_time_type used;
  };
  std::vector<Entry> entries;
  std::error_code error;
  const int64_t needed = header().file_bytes;
  int64_t total = needed;
  for (fs::directory_iterator it(options_.folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    // What a writer left that was killed. A file that is gone by now has no time, and another writer may have made one of its name.
    if (it->path().extension() == kPartial) {
      const fs::file_time_type written = it->last_write_time(ignored);
      if (!ignored && written < fs::file_time_type::clock::now() - std::chrono::hours(24)) fs::remove(it->path(), ignored);
    }
    if (it->path().extension() != kExtension || it->path() == path_) continue;
    const auto size = static_cast<int64_t>(it->file_size(ignored));
    if (ignored) continue;
    entries.push_back({it->path(), size, it->last_write_time(ignored)});
    total += size;
  }
  std::ranges::sort(entries, {}, &Entry::used);
  for (const Entry& entry : entries) {
    if (total <= options_.max_bytes) break;
    if (fs::remove(entry.path, error)) total -= entry.size;  // who has it mapped keeps it until the end
  }
  struct statvfs disk{};
  if (::statvfs(options_.folder.c_str(), &disk) != 0) return errno_status(options_.folder, "ask for free space");
  const auto available = static_cast<int64_t>(disk.f_bavail) * static_cast<int64_t>(disk.f_frsize);
  if (available / 2 < needed) {
    return Status::resource_exhausted(fmt::format("{}: {} MB are free, packed weights of {} MB are kept where as much again stays free",
                                                  options_.folder, available >> 20, needed >> 20));
  }
  return Status::ok();
}

Status WeightCache::write_to(int file, const Weights& weights, const std::atomic<bool>& stop) const {
  Header head = header();
  std::vector<uint64_t> checksums(static_cast<std::size_t>(head.num_chunks));
  // Reserves the blocks, where the file system can: a full disk shows before anything is written.
  if (::posix_fallocate(file, 0, head.file_bytes) == ENOSPC) return Status::resource_exhausted(fmt::format("{}: the disk is full", path_));
  const std::span<const std::byte> panels = weights.panels();
  int64_t unsynced = 0;
  for (int64_t chunk = 0; chunk < head.num_chunks; ++chunk) {
    if (stop) return Status::cancelled("writing packed weights was given up");
    const int64_t begin = chunk * kChunkBytes, num_bytes = std::min(kChunkBytes, panels_bytes_ - begin);
    checksums[static_cast<std::size_t>(chunk)] =
        checksum(panels.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(num_bytes)));
    MR_RETURN_IF_ERROR(write_at(file, path_, panels.data() + begin, num_bytes, head.panels_offset + begin));
    // What was written goes to the disk piece by piece: nobody else's writing waits behind a gigabyte, nor does giving up.
    constexpr int64_t kSyncChunks = 8;
    if ((chunk + 1) % kSyncChunks == 0) {
      ::sync_file_range(file, head.panels_offset + unsynced, begin + num_bytes - unsynced,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
      unsynced = begin + num_bytes;
    }
  }
  std::vector<std::byte> bytes(static_cast<std::size_t>(round_up(sizeof head, 64) + round_up(head.num_chunks * 8, 64)));
  std::memcpy(bytes.data(), &head, sizeof head);
  std::memcpy(bytes.data() + round_up(sizeof head, 64), checksums.data(), checksums.size() * 8);
  head.checksum = checksum(bytes);
  std::memcpy(bytes.data(), &head, sizeof head);
  MR_RETURN_IF_ERROR(write_at(file, path_, bytes.data(), static_cast<int64_t>(bytes.size()), 0));
  if (::fdatasync(file) != 0) return errno_status(path_, "write");
  return Status::ok();
}

Status WeightCache::write(const Weights& weights, const std::atomic<bool>& stop) const {
  MR_CHECK(weights.bytes() == panels_bytes_ && !weights.panels().empty(), "weights that were not packed");
  std::error_code error;
  fs::create_directories(fs::path(options_.folder).parent_path(), error);
  if (::mkdir(options_.folder.c_str(), 0700) != 0 && errno != EEXIST) return errno_status(options_.folder, "make the folder");
  MR_RETURN_IF_ERROR(make_room());

  // Whoever holds the lock on the file of this name writes it. The name may have been renamed or removed since it was opened.
  const std::string partial = path_ + std::string(kPartial);
  const FileDescriptor file(::open(partial.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (file.fd < 0) return errno_status(partial, "write");
  const auto busy = [&] { return Status::cancelled(fmt::format("{}: another process is writing it", partial)); };
  if (::flock(file.fd, LOCK_EX | LOCK_NB) != 0) return errno == EWOULDBLOCK ? busy() : errno_status(partial, "lock");
  struct stat opened{}, named{};
  if (::fstat(file.fd, &opened) != 0 || ::lstat(partial.c_str(), &named) != 0 || opened.st_ino != named.st_ino ||
      opened.st_dev != named.st_dev)
    return busy();
  if (opened.st_uid != ::geteuid() || !S_ISREG(opened.st_mode))
    return Status::unavailable(fmt::format("{}: belongs to somebody else", partial));
  Status status =
      ::ftruncate(file.fd, 0) == 0 && ::fchmod(file.fd, 0600) == 0 ? write_to(file.fd, weights, stop) : errno_status(partial, "write");
  if (status.is_ok() && ::rename(partial.c_str(), path_.c_str()) != 0) status = errno_status(path_, "rename to it");
  if (!status.is_ok()) ::unlink(partial.c_str());
  return status;
}

WeightCacheWriter::WeightCacheWriter(WeightCache cache, std::shared_ptr<const Weights> weights,
                                     std::function<void(const Status&)> on_failure)
    : cache_(std::move(cache)), weights_(std::move(weights)), on_failure_(std::move(on_failure)) {
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "millrace-cache");
    const sched_param none{};
    pthread_setschedparam(pthread_self(), SCHED_IDLE, &none);
    constexpr int kWhoProcess = 1, kClassIdle = 3 << 13;  // of linux/ioprio.h, which older systems lack
    ::syscall(SYS_ioprio_set, kWhoProcess, 0, kClassIdle);
    const Status status = cache_.write(*weights_, stop_);
    if (!status.is_ok() && status.code() != StatusCode::kCancelled && on_failure_) on_failure_(status);
  });
}

WeightCacheWriter::~WeightCacheWriter() {
  stop_ = true;
  wait();
}

void WeightCacheWriter::wait() {
  if (!thread_.joinable()) return;
  const sched_param none{};
  pthread_setschedparam(thread_.native_handle(), SCHED_OTHER, &none);  // now somebody waits for it
  thread_.join();
}

}  // namespace millrace
