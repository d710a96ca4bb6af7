#include "millrace/server/helper_pool.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace millrace {

HelperPool::HelperPool(int num_threads, int64_t num_jobs_max, int64_t job_bytes_max) : num_jobs_max_(num_jobs_max), job_bytes_max_(job_bytes_max) {
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

void HelperPool::run() {
  // Linux keeps a nice value per thread. Generation goes on at full speed while a long prompt is read.
  setpriority(PRIO_PROCESS, static_cast<id_t>(syscall(SYS_gettid)), 10);
  while (true) {
    Job job;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      if (stopping_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
      job_bytes_ -= job.bytes;
    }
    job.work();
  }
}

}  // namespace millrace
