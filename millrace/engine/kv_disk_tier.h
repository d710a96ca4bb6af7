#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/engine/block_store.h"
#include "millrace/engine/engine_metrics.h"
#include "millrace/engine/kv_disk_folder.h"
#include "millrace/engine/kv_disk_options.h"
#include "millrace/model/step_plan.h"

namespace millrace {

// Full KV blocks in files, so that the prefix cache outlives its memory and the process (docs/memory.md).
//
// A block is copied when it becomes full, not when its memory is taken for another: so a killed process has lost only what the writing
// thread had not reached, a stopping one has no cache of gigabytes to save, and nobody waits for a copy when memory is short. It costs one
// copy of the block for every 32 tokens of a sequence, far less than computing them.
//
// The writing thread takes the copies from a queue of bounded size; a block that finds it full is not kept. Files are used in the order
// that the memory's blocks are: of a chain the end goes before its beginning. Nothing here ever fails a request: a file that is not
// believed is a warning and a miss, a disk that cannot be written ends the writing until the next start.
class KvDiskTier {
 public:
  // `block_bytes`: of each group. Lists the folder, and removes files until they are within max_bytes. Errors as KvDiskFolder::open.
  static Result<std::unique_ptr<KvDiskTier>> open(KvDiskOptions options, std::vector<int64_t> block_bytes);
  ~KvDiskTier();  // writes what is queued
  KvDiskTier(const KvDiskTier&) = delete;
  KvDiskTier& operator=(const KvDiskTier&) = delete;

  // 32 bytes that lie in the folder: with them digests mean the same after a restart. EngineOptions::cache_secret.
  const std::string& secret() const { return folder_->secret(); }

  // One thread calls these; as BlockStore's.
  bool contains(int64_t group, const BlockDigest& digest) const;
  bool read(int64_t group, const BlockDigest& digest, std::span<std::byte> to);  // [block_bytes of the group]
  // Calls fill(copy) at once where the block is wanted: it is new, and the queue has room.
  void write(int64_t group, const BlockDigest& digest, const std::function<void(std::span<std::byte>)>& fill);
  void touch(int64_t group, const BlockDigest& digest);
  void forget(int64_t group, const BlockDigest& digest);

  void wait();                    // until nothing is queued. Any thread
  KvDiskMetrics metrics() const;  // any thread

 private:
  // A copy on its way to the disk.
  struct Job {
    KvBlockKey key;
    uint64_t used = 0;
    bool forgotten = false;
    std::unique_ptr<std::byte[]> block;
  };
  struct File {
    int64_t bytes = 0;
    std::optional<KvBlockKey> key;
    std::string name;  // where there is no key: of another fingerprint
  };

  KvDiskTier(KvDiskOptions options, std::unique_ptr<KvDiskFolder> folder);
  void run();
  void make_room(std::unique_lock<std::mutex>& lock, int64_t needed_bytes);
  void take_out(const KvBlockKey& key);
  std::shared_ptr<const Job> unwritten(const KvBlockKey& key) const;
  void end_writing(std::unique_lock<std::mutex>& lock, const Status& why);
  void save_order();
  void warn(const std::string& message);
  std::string name_of(const File& file) const { return file.key ? folder_->name_of(*file.key) : file.name; }

  const KvDiskOptions options_;
  const std::unique_ptr<KvDiskFolder> folder_;
  std::atomic<int> num_warnings_{0};

  mutable std::mutex mutex_;  // of all below; never held while a file is read or written
  std::condition_variable work_, idle_;
  // By when they were used last: every use counts `uses_` up. That of a file from before this start is at most uses_at_start_.
  std::map<uint64_t, File> files_;
  std::unordered_map<KvBlockKey, uint64_t, KvBlockKeyHash> by_key_;  // a key of files_
  std::unordered_set<KvBlockKey, KvBlockKeyHash> left_alone_;        // names behind which somebody else's files lie
  std::deque<std::shared_ptr<Job>> queue_;
  std::unordered_map<KvBlockKey, std::shared_ptr<Job>, KvBlockKeyHash> unwritten_;  // those of the queue, and the one being written
  uint64_t uses_ = 0, uses_at_start_ = 0;
  int64_t queued_bytes_ = 0;
  bool stopping_ = false;
  KvDiskMetrics metrics_;
  std::thread thread_;
};

}  // namespace millrace
