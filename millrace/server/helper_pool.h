#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace millrace {

// A few threads of low priority for work that must hold up neither the I/O thread nor the engine: parsing, templates, tokenization.
// The queue is bounded in jobs and in the bytes they hold. In order of arrival, but that large jobs leave one thread (of several) to the
// others: a short question never waits until a book has been tokenized.
class HelperPool {
 public:
  static constexpr int64_t kLargeJobBytes = 256 << 10;

  HelperPool(int num_threads, int64_t num_jobs_max, int64_t job_bytes_max);
  ~HelperPool();  // finishes the jobs that have begun, drops the others
  HelperPool(const HelperPool&) = delete;
  HelperPool& operator=(const HelperPool&) = delete;

  // False: the queue is full, and the job was not taken. Jobs must not throw.
  bool submit(std::function<void()> job, int64_t job_bytes);

 private:
  struct Job {
    std::function<void()> work;
    int64_t bytes = 0;
    bool is_large() const { return bytes >= kLargeJobBytes; }
  };

  void run();
  std::deque<Job>::iterator next_job();  // mutex_ is held

  const int64_t num_jobs_max_, job_bytes_max_, num_threads_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;  // guarded by mutex_, like the rest
  int64_t job_bytes_ = 0;
  int64_t num_large_running_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace millrace
