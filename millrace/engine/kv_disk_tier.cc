#include "millrace/engine/kv_disk_tier.h"

#include <fmt/format.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "millrace/base/check.h"

namespace millrace {
namespace {

// A folder full of damaged files is told with a few of them; the others are counted.
constexpr int kWarningsMax = 10;

}  // namespace

Result<std::unique_ptr<KvDiskTier>> KvDiskTier::open(KvDiskOptions options, std::vector<int64_t> block_bytes) {
  MR_ASSIGN_OR_RETURN(auto folder, KvDiskFolder::open(options.folder, options.fingerprint, std::move(block_bytes)));
  return std::unique_ptr<KvDiskTier>(new KvDiskTier(std::move(options), std::move(folder)));
}

KvDiskTier::KvDiskTier(KvDiskOptions options, std::unique_ptr<KvDiskFolder> folder)
    : options_(std::move(options)), folder_(std::move(folder)) {
  KvDiskFolder::Listing listing = folder_->list();
  if (listing.num_strangers > 0) {
    warn(fmt::format("{}: {} file{} of the cache, such as {}; they are left alone", folder_->path(), listing.num_strangers,
                     listing.num_strangers == 1 ? " is none" : "s are none", listing.stranger));
  }
  metrics_.is_writing = true;
  for (KvDiskFolder::File& file : listing.files) {
    if (file.key) by_key_[*file.key] = uses_ + 1;
    metrics_.held_bytes += file.bytes;
    files_[++uses_] = {file.bytes, file.key, file.key ? std::string() : std::move(file.name)};
  }
  uses_at_start_ = uses_;
  {
    std::unique_lock lock(mutex_);
    make_room(lock, 0);
  }
  thread_ = std::thread([this] { run(); });
}

KvDiskTier::~KvDiskTier() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  thread_.join();
  save_order();
}

void KvDiskTier::warn(const std::string& message) {
  if (options_.on_warning && num_warnings_.fetch_add(1) < kWarningsMax) options_.on_warning(message);
}

bool KvDiskTier::contains(int64_t group, const BlockDigest& digest) const {
  const std::lock_guard lock(mutex_);
  const KvBlockKey key{group, digest};
  return by_key_.contains(key) || unwritten(key) != nullptr;
}

// Under the lock: the copy that waits to be written, or null.
std::shared_ptr<const KvDiskTier::Job> KvDiskTier::unwritten(const KvBlockKey& key) const {
  const auto found = unwritten_.find(key);
  return found == unwritten_.end() || found->second->forgotten ? nullptr : found->second;
}

bool KvDiskTier::read(int64_t group, const BlockDigest& digest, std::span<std::byte> to) {
  const KvBlockKey key{group, digest};
  std::shared_ptr<const Job> job;
  {
    const std::lock_guard lock(mutex_);
    job = unwritten(key);
    if (job == nullptr && !by_key_.contains(key)) return false;
    metrics_.num_read += job != nullptr ? 1 : 0;
  }
  if (job != nullptr) {
    std::copy_n(job->block.get(), to.size(), to.begin());
    touch(group, digest);
    return true;
  }
  const Status status = folder_->read(key, to);
  if (status.is_ok()) {
    touch(group, digest);
    const std::lock_guard lock(mutex_);
    ++metrics_.num_read;
    return true;
  }
  const bool damaged = status.code() == StatusCode::kDataLoss, gone = status.code() == StatusCode::kNotFound;
  {
    const std::lock_guard lock(mutex_);
    take_out(key);
    metrics_.num_rejected += gone ? 0 : 1;
    if (!damaged && !gone) left_alone_.insert(key);
  }
  if (gone) return false;  // the writing thread has just made room, or somebody has tidied up
  const bool removed = damaged && folder_->remove(folder_->name_of(key)).is_ok();
  warn(fmt::format("{}; it is {}, and what it held is computed again", status.message(), removed ? "removed" : "ignored"));
  return false;
}

void KvDiskTier::write(int64_t group, const BlockDigest& digest, const std::function<void(std::span<std::byte>)>& fill) {
  const KvBlockKey key{group, digest};
  const int64_t num_bytes = folder_->block_bytes(group);
  const auto job = std::make_shared<Job>();
  {
    const std::lock_guard lock(mutex_);
    if (!metrics_.is_writing || by_key_.contains(key) || unwritten_.contains(key) || left_alone_.contains(key)) return;
    // A block that is larger than the queue may wait alone.
    if (queued_bytes_ > 0 && queued_bytes_ + num_bytes > options_.queue_bytes) {
      ++metrics_.num_dropped;
      return;
    }
  }
  job->key = key;
  job->block = std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(num_bytes));
  fill({job->block.get(), static_cast<std::size_t>(num_bytes)});
  {
    const std::lock_guard lock(mutex_);
    job->used = ++uses_;
    queued_bytes_ += num_bytes;
    unwritten_.emplace(key, job);
    queue_.push_back(job);
  }
  work_.notify_one();
}

void KvDiskTier::touch(int64_t group, const BlockDigest& digest) {
  const std::lock_guard lock(mutex_);
  if (const auto found = by_key_.find({group, digest}); found != by_key_.end()) {
    auto node = files_.extract(found->second);
    node.key() = found->second = ++uses_;
    files_.insert(std::move(node));
  } else if (const auto job = unwritten_.find({group, digest}); job != unwritten_.end()) {
    job->second->used = ++uses_;
  }
}

void KvDiskTier::forget(int64_t group, const BlockDigest& digest) {
  const KvBlockKey key{group, digest};
  {
    const std::lock_guard lock(mutex_);
    if (const auto job = unwritten_.find(key); job != unwritten_.end()) job->second->forgotten = true;
    if (!by_key_.contains(key)) return;
    take_out(key);
  }
  const Status removed = folder_->remove(folder_->name_of(key));
  if (!removed.is_ok() && removed.code() != StatusCode::kNotFound) warn(removed.message());
}

// Under the lock.
void KvDiskTier::take_out(const KvBlockKey& key) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return;
  metrics_.held_bytes -= files_.at(found->second).bytes;
  files_.erase(found->second);
  by_key_.erase(found);
}

void KvDiskTier::wait() {
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [&] { return unwritten_.empty(); });
}

KvDiskMetrics KvDiskTier::metrics() const {
  const std::lock_guard lock(mutex_);
  return metrics_;
}

void KvDiskTier::run() {
  pthread_setname_np(pthread_self(), "millrace-kvdisk");
  // Behind those who compute, but not only when they are idle: a busy server never is, and the queue is short.
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)), 10);
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const std::shared_ptr<Job> job = std::move(queue_.front());
    queue_.pop_front();
    const int64_t block_bytes = folder_->block_bytes(job->key.group), file_bytes = folder_->file_bytes(job->key.group);
    if (!job->forgotten && metrics_.is_writing) make_room(lock, file_bytes);
    if (!job->forgotten && metrics_.is_writing) {
      lock.unlock();
      const Status written = folder_->write(job->key, {job->block.get(), static_cast<std::size_t>(block_bytes)});
      lock.lock();
      if (!written.is_ok()) {
        end_writing(lock, written);
      } else if (job->forgotten) {
        lock.unlock();
        const Status removed = folder_->remove(folder_->name_of(job->key));
        lock.lock();
        if (!removed.is_ok()) end_writing(lock, removed);
      } else {
        ++metrics_.num_written;
        metrics_.held_bytes += file_bytes;
        by_key_[job->key] = job->used;
        files_[job->used] = {file_bytes, job->key, {}};
      }
    }
    queued_bytes_ -= block_bytes;
    unwritten_.erase(job->key);
    if (unwritten_.empty()) idle_.notify_all();
  }
}

// Removes the files longest unused until so many bytes more are within max_bytes.
void KvDiskTier::make_room(std::unique_lock<std::mutex>& lock, int64_t needed_bytes) {
  while (!files_.empty() && metrics_.held_bytes + needed_bytes > options_.max_bytes) {
    const auto oldest = files_.begin();
    const std::string name = name_of(oldest->second);
    metrics_.held_bytes -= oldest->second.bytes;
    if (oldest->second.key) by_key_.erase(*oldest->second.key);
    files_.erase(oldest);
    lock.unlock();
    const Status removed = folder_->remove(name);
    if (removed.code() == StatusCode::kInvalidArgument) warn(removed.message() + "; it is left alone");
    lock.lock();
    if (removed.code() == StatusCode::kUnavailable) end_writing(lock, removed);  // what cannot be removed must not grow
  }
}

void KvDiskTier::end_writing(std::unique_lock<std::mutex>& lock, const Status& why) {
  if (!metrics_.is_writing) return;
  metrics_.is_writing = false;
  lock.unlock();
  warn(fmt::format("{}; no more blocks are kept on disk until the next start", why.message()));
  lock.lock();
}

// What was used in this run gets its time now, in order: while it ran that would have been a call of the system for every use. A killed
// process leaves the times at which the files were written.
void KvDiskTier::save_order() {
  int64_t now = std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  for (auto file = files_.upper_bound(uses_at_start_); file != files_.end(); ++file) folder_->set_used(name_of(file->second), now++);
}

}  // namespace millrace
