#include "millrace/base/thread_pool.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

namespace millrace {
namespace {

double process_cpu_seconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

TEST(ThreadPool, RunsEveryWorkerOnceARegion) {
  for (int num_threads = 1; num_threads <= 4; ++num_threads) {
    ThreadPool pool(num_threads);
    ASSERT_EQ(pool.num_threads(), num_threads);
    std::vector<int> calls(static_cast<std::size_t>(num_threads), 0);  // plain ints: run() must publish them
    for (int region = 0; region < 2'000; ++region) {
      pool.run([&](int worker) { ++calls[static_cast<std::size_t>(worker)]; });
      for (int count : calls) ASSERT_EQ(count, region + 1);
    }
  }
}

TEST(ThreadPool, BarrierPublishesWhatWasWrittenBefore) {
  // Each worker adds its neighbour's number of the previous round. A barrier that lets anybody through early breaks the sums.
  constexpr int kRounds = 20'000;
  for (int num_threads = 1; num_threads <= 4; ++num_threads) {
    ThreadPool pool(num_threads);
    std::vector<std::vector<int64_t>> values(2, std::vector<int64_t>(static_cast<std::size_t>(num_threads), 1));
    pool.run([&](int worker) {
      const auto neighbour = static_cast<std::size_t>((worker + 1) % num_threads);
      for (int round = 0; round < kRounds; ++round) {
        const auto from = static_cast<std::size_t>(round % 2), to = 1 - from;
        values[to][static_cast<std::size_t>(worker)] = values[from][neighbour] + 1;
        pool.barrier(worker);
      }
    });
    for (int64_t value : values[kRounds % 2]) ASSERT_EQ(value, kRounds + 1);
  }
}

TEST(ThreadPool, HundredThousandBarriersStayFastWithMoreThreadsThanCpus) {
  // A barrier that only spins needs a scheduler slice (milliseconds) for each of them on a machine with fewer CPUs: ten minutes of CPU time.
  // CPU time, because other programs may keep the machine busy.
  for (int num_threads = 1; num_threads <= 4; ++num_threads) {
    ThreadPool pool(num_threads);
    const double start = process_cpu_seconds();
    pool.run([&](int worker) {
      for (int i = 0; i < 100'000; ++i) pool.barrier(worker);
    });
    const double seconds = process_cpu_seconds() - start;
    RecordProperty("cpu_seconds_" + std::to_string(num_threads), std::to_string(seconds));
    EXPECT_LT(seconds, 60.0) << num_threads << " threads";
  }
}

TEST(ThreadPool, WorkersHaveNames) {
  ThreadPool pool(3);
  std::vector<std::string> names(3);
  pool.run([&](int worker) {
    char name[16] = {};
    pthread_getname_np(pthread_self(), name, sizeof(name));
    names[static_cast<std::size_t>(worker)] = name;
  });
  EXPECT_EQ(names[1], "millrace-w1");
  EXPECT_EQ(names[2], "millrace-w2");
}

TEST(WorkCounter, HandsOutEveryNumberOnceAndAgainAfterReset) {
  constexpr int64_t kItems = 10'007;
  for (int num_threads = 1; num_threads <= 4; ++num_threads) {
    ThreadPool pool(num_threads);
    WorkCounter counter;
    std::vector<std::atomic<int>> taken(kItems);
    pool.run([&](int worker) {
      for (int round = 0; round < 5; ++round) {
        for (;;) {
          const int64_t first = counter.claim(3);
          if (first >= kItems) break;
          for (int64_t i = first; i < std::min(first + 3, kItems); ++i) taken[static_cast<std::size_t>(i)].fetch_add(1);
        }
        pool.barrier(worker);
        if (worker == 0) counter.reset();
        pool.barrier(worker);
      }
    });
    for (const auto& count : taken) ASSERT_EQ(count.load(), 5);
  }
}

}  // namespace
}  // namespace millrace
