#include "millrace/base/thread_pool.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <numeric>
#include <string>
#include <thread>
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
    for (int region = 0; region < 200; ++region) {
      pool.run([&](int worker) { ++calls[static_cast<std::size_t>(worker)]; });
      for (int count : calls) ASSERT_EQ(count, region + 1);
    }
  }
}

TEST(ThreadPool, BarrierPublishesWhatWasWrittenBefore) {
  // Each worker adds its neighbour's number of the previous round. A barrier that lets anybody through early breaks the sums.
  constexpr int kRounds = 1'000;
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

TEST(ThreadPool, HundredThousandStagesStayFastWithMoreThreadsThanCpus) {
  // Where threads wait for each other, each stage costs a scheduler slice (milliseconds) on a machine with fewer CPUs: ten minutes of CPU
  // time. CPU time, because other programs may keep the machine busy.
  for (int num_threads = 1; num_threads <= 8; ++num_threads) {
    ThreadPool pool(num_threads);
    const double start = process_cpu_seconds();
    std::atomic<int64_t> chunks{0};
    pool.run_stages(100'000, [](int64_t) { return 6; }, [&](int64_t, int64_t, int) { chunks.fetch_add(1, std::memory_order_relaxed); });
    const double seconds = process_cpu_seconds() - start;
    EXPECT_EQ(chunks.load(), 600'000);
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

TEST(ThreadPool, EveryChunkOfEveryStageRunsOnceAndInOrder) {
  constexpr int64_t kStages = 300;
  for (int num_threads = 1; num_threads <= 5; ++num_threads) {
    ThreadPool pool(num_threads);
    for (int region = 0; region < 20; ++region) {
      // Plain numbers: a chunk that ran beside another of its index would lose a count.
      std::vector<int64_t> values(40, 0);
      std::vector<std::atomic<int>> calls(kStages);
      std::vector<int> counted(kStages, 0);
      const auto count_of = [](int64_t stage) { return stage % 7 == 3 ? int64_t{0} : stage % 5 == 1 ? int64_t{1} : stage % 40 + 1; };
      pool.run_stages(
          kStages,
          [&](int64_t stage) {
            ++counted[static_cast<std::size_t>(stage)];
            return count_of(stage);
          },
          [&](int64_t stage, int64_t index, int worker) {
            ASSERT_TRUE(worker >= 0 && worker < num_threads);
            ASSERT_TRUE(index >= 0 && index < count_of(stage));
            calls[static_cast<std::size_t>(stage)].fetch_add(1, std::memory_order_relaxed);
            ++values[static_cast<std::size_t>(index)];
          });
      for (int64_t stage = 0; stage < kStages; ++stage) {
        ASSERT_EQ(calls[static_cast<std::size_t>(stage)].load(), count_of(stage)) << stage;
        ASSERT_EQ(counted[static_cast<std::size_t>(stage)], 1) << stage;
      }
      int64_t expected = 0;
      for (int64_t stage = 0; stage < kStages; ++stage) expected += count_of(stage);
      ASSERT_EQ(std::accumulate(values.begin(), values.end(), int64_t{0}), expected);
    }
  }
}

TEST(ThreadPool, MoreIndexesThanAStageHasParts) {
  ThreadPool pool(3);
  for (const int64_t count : {ThreadPool::kChunksMax, ThreadPool::kChunksMax + 1, 3 * ThreadPool::kChunksMax - 1}) {
    std::vector<uint8_t> runs(static_cast<std::size_t>(count));
    pool.run_chunks(count, [&](int64_t index, int) { ++runs[static_cast<std::size_t>(index)]; });
    EXPECT_EQ(std::count(runs.begin(), runs.end(), 1), count);
  }
}

TEST(ThreadPool, AStageSeesWhatTheOneBeforeWrote) {
  constexpr int64_t kStages = 5'000, kChunks = 6;
  for (int num_threads = 2; num_threads <= 4; ++num_threads) {
    ThreadPool pool(num_threads);
    std::vector<std::vector<int64_t>> values(2, std::vector<int64_t>(kChunks, 1));
    pool.run_stages(
        kStages, [](int64_t) { return kChunks; },
        [&](int64_t stage, int64_t index, int) {
          const auto from = static_cast<std::size_t>(stage % 2), to = 1 - from;
          values[to][static_cast<std::size_t>(index)] = values[from][static_cast<std::size_t>((index + 1) % kChunks)] + 1;
        });
    for (int64_t value : values[kStages % 2]) ASSERT_EQ(value, kStages + 1);
  }
}

// Workers that come late from one kind of region must find their way into the other, and out of the pool.
TEST(ThreadPool, RegionsOfBothKindsMayFollowEachOther) {
  for (int num_threads = 1; num_threads <= 6; ++num_threads) {
    for (int pools = 0; pools < 20; ++pools) {
      ThreadPool pool(num_threads);
      for (int region = 0; region < 100; ++region) {
        std::atomic<int> chunks{0}, workers{0};
        pool.run_chunks(region % 9, [&](int64_t, int) { chunks.fetch_add(1); });
        ASSERT_EQ(chunks.load(), region % 9);
        if (region % 3 == 0) pool.run([&](int) { workers.fetch_add(1); });
        ASSERT_EQ(workers.load(), region % 3 == 0 ? num_threads : 0);
        if (region % 50 == 49) std::this_thread::sleep_for(std::chrono::microseconds(200));  // the workers go to sleep
      }
    }
  }
}

}  // namespace
}  // namespace millrace
