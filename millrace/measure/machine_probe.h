#pragma once

#include <span>

#include "millrace/base/thread_pool.h"
#include "millrace/measure/machine_profile.h"

namespace millrace {

struct ProbeOptions {
  // Roughly what each of the measurements takes, of which there are about twenty per number of threads.
  double seconds_each = 0.08;
  // The buffer for memory bandwidth is twice the last-level cache, at least 256 MB, but no more than this nor a quarter of what is free.
  int64_t memory_bytes_max = int64_t{1} << 30;
};

// Numbers of threads worth measuring on a machine with `num_cpus`: 1 to 4, powers of two, and all.
std::vector<int> probe_thread_counts(int num_cpus);

// Measures this machine with each of these numbers of threads. Other programs' work shows as lower rates: the best of many short rounds is
// what the machine can do. ResourceExhausted: no memory for the buffer.
Result<MachineProfile> probe_machine(std::span<const int> thread_counts, const ProbeOptions& options = {});

// A read-only stream through one buffer, as the probe measures it; for measuring again while something else is measured.
class ReadStream {
 public:
  // `huge_pages`: asks for 2 MB pages, or forbids them.
  static Result<ReadStream> create(int64_t num_bytes, bool huge_pages, ThreadPool& pool);
  ReadStream(ReadStream&& other) noexcept;
  ReadStream& operator=(ReadStream&&) = delete;
  ~ReadStream();

  int64_t num_bytes() const { return num_bytes_; }
  int64_t huge_page_bytes() const;
  // Reads the buffer from end to end for about `seconds` (at least three times) with all threads of the pool, each its own part: bytes a
  // second.
  MeasuredRate measure(ThreadPool& pool, double seconds) const;

 private:
  ReadStream(std::byte* data, int64_t num_bytes) : data_(data), num_bytes_(num_bytes) {}
  std::byte* data_ = nullptr;
  int64_t num_bytes_ = 0;
};

}  // namespace millrace
