#include "millrace/server/helper_pool.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

namespace millrace {

HelperPool::HelperPool(int num_threads, int64_t num_jobs_max, int64_t job_bytes_max)
    : num_jobs_max_(num_jobs_max), job_bytes_max_(job_bytes_max), num_threads_(num_threads) {
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { run(); });
}

HelperPool::~HelperPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    jobs_.clear();
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool HelperPool::submit(std::function<void()> job, int64_t job_bytes) {
  {
    const std::lock_guard lock(mutex_);
    // One large job is always taken when nothing waits: a limit below the largest body must not refuse it for ever.
    if (!jobs_.empty() && (static_cast<int64_t>(jobs_.size()) >= num_jobs_max_ || job_bytes_ + job_bytes > job_bytes_max_)) return false;
    jobs_.push_back({std::move(job), job_bytes});
    job_bytes_ += job_bytes;
  }
  changed_.notify_one();
  return true;
}

std::deque<HelperPool::Job>::iterator HelperPool::next_job() {
  const bool takes_large = num_large_running_ < std::max<int64_t>(1, num_threads_ - 1);
  return std::find_if(jobs_.begin(), jobs_.end(), [&](const Job& job) { return takes_large || !job.is_large(); });
}

void HelperPool::run() {
  // Linux keeps a nice value per thread. Generation goes on at full speed while a long prompt is read.
  setpriority(PRIO_PROCESS, static_cast<id_t>(syscall(SYS_gettid)), 10);
  std::unique_lock lock(mutex_);
  while (true) {
    auto next = jobs_.end();
    changed_.wait(lock, [&] {
      next = next_job();
      return stopping_ || next != jobs_.end();
    });
    if (stopping_) return;
    Job job = std::move(*next);
    jobs_.erase(next);
    job_bytes_ -= job.bytes;
    num_large_running_ += job.is_large();
    lock.unlock();
    job.work();
    job.work = nullptr;  // what it holds goes before the lock is taken
    lock.lock();
    num_large_running_ -= job.is_large();
    if (job.is_large()) changed_.notify_all();  // another may run now
  }
}

}  // namespace millrace
