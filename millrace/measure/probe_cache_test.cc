#include "millrace/measure/probe_cache.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace millrace {
namespace {

// Short enough for a test; what comes out is a measurement, only a poor one.
constexpr ProbeOptions kQuick{.seconds_each = 1e-3, .memory_bytes_max = 4 << 20};

class ProbeCacheTest : public testing::Test {
 protected:
  ProbeCacheTest() : folder_((std::filesystem::temp_directory_path() / ("millrace_probe_" + std::to_string(::getpid()))).string()) {
    clean();
  }
  ~ProbeCacheTest() override { clean(); }
  void clean() { std::filesystem::remove_all(folder_); }
  std::string file() const { return probe_cache_file(folder_, this_machine()); }
  void overwrite(const std::string& text) {
    std::filesystem::create_directories(folder_);
    std::ofstream(file()) << text;
  }
  ProbedMachine probe(std::vector<int> counts, bool refresh = false) {
    auto probed = probe_machine_cached(counts, folder_, refresh, kQuick);
    EXPECT_TRUE(probed.is_ok());
    return std::move(probed).value();
  }
  std::string folder_;
};

TEST_F(ProbeCacheTest, MeasuresOnceAndReadsBack) {
  const ProbedMachine first = probe({1});
  EXPECT_TRUE(first.measured);
  EXPECT_TRUE(first.cache_error.is_ok()) << first.cache_error.message();
  EXPECT_EQ(first.file, file());
  const ProbedMachine second = probe({1});
  EXPECT_FALSE(second.measured);
  ASSERT_EQ(second.profile.threads.size(), 1u);
  const ThreadProfile &written = first.profile.threads[0], &read = second.profile.threads[0];
  EXPECT_TRUE(second.profile.same_machine(first.profile));
  EXPECT_EQ(second.profile.memory_buffer_bytes, first.profile.memory_buffer_bytes);
  EXPECT_DOUBLE_EQ(read.read_small_pages.best, written.read_small_pages.best);
  EXPECT_DOUBLE_EQ(read.read_huge_pages.median, written.read_huge_pages.median);
  EXPECT_DOUBLE_EQ(read.barrier_seconds, written.barrier_seconds);
  ASSERT_EQ(read.caches.size(), written.caches.size());
  for (std::size_t i = 0; i < read.caches.size(); ++i) EXPECT_EQ(read.caches[i].buffer_bytes, written.caches[i].buffer_bytes);
  ASSERT_EQ(read.compute.size(), written.compute.size());
  for (const auto& level : written.compute)
    EXPECT_DOUBLE_EQ(read.peak(level.isa, Arithmetic::kInt8), written.peak(level.isa, Arithmetic::kInt8));
  EXPECT_TRUE(probe({1}, true).measured);
  // Nothing but the one file is left behind.
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) files += entry.is_regular_file();
  EXPECT_EQ(files, 1);
}

TEST_F(ProbeCacheTest, AddsTheThreadsThatAreMissing) {
  const ProbedMachine one = probe({1}), both = probe({1, 2});
  EXPECT_TRUE(both.measured);
  ASSERT_EQ(both.profile.threads.size(), 2u);
  EXPECT_DOUBLE_EQ(both.profile.threads[0].read_bandwidth(), one.profile.threads[0].read_bandwidth());
  EXPECT_EQ(both.profile.threads[1].num_threads, 2);
  EXPECT_FALSE(probe({2}).measured);
  EXPECT_EQ(both.profile.of_threads(3), nullptr);
}

TEST_F(ProbeCacheTest, ABrokenFileIsMeasuredAgain) {
  const std::string good = json::serialize(to_json(probe({1}).profile));
  const auto broken = [&](std::string from, const std::string& to) {
    std::string text = good;
    const std::size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  };
  const std::string texts[] = {"",
                               "{",
                               "[]",
                               "null",
                               "{\"cpu\": 1}",
                               good.substr(0, good.size() / 2),
                               std::string(100, '\0'),
                               broken("\"num_cpus\":", "\"num_cpus\":-"),
                               broken("\"profiles\":[", "\"profiles\":[7,"),
                               broken("\"best\":", "\"best\":\"fast\",\"b\":"),
                               broken("\"threads\":1", "\"threads\":0"),
                               broken("\"isa\":\"scalar\"", "\"isa\":\"mmx\""),
                               broken("\"barrier_seconds\":", "\"other\":")};
  for (const std::string& text : texts) {
    SCOPED_TRACE(text.substr(0, 200));
    overwrite(text);
    EXPECT_FALSE(read_probe_cache(folder_, this_machine()).has_value());
    EXPECT_TRUE(probe({1}).measured);
    EXPECT_TRUE(read_probe_cache(folder_, this_machine()).has_value());
  }
}

TEST_F(ProbeCacheTest, AnotherMachinesFileIsNotBelieved) {
  MachineProfile other = probe({1}).profile;
  other.cpu += " at twice the clock";
  overwrite(json::serialize(to_json(other)));
  EXPECT_FALSE(read_probe_cache(folder_, this_machine()).has_value());
  EXPECT_NE(probe_cache_file(folder_, other), file());
}

TEST_F(ProbeCacheTest, AFolderThatCannotBeWrittenIsNoFailure) {
  std::ofstream(folder_ + ".file") << "no folder";
  const std::vector<int> counts{1};
  const auto probed = probe_machine_cached(counts, folder_ + ".file/millrace", false, kQuick);
  ASSERT_TRUE(probed.is_ok());
  EXPECT_TRUE(probed->measured);
  EXPECT_FALSE(probed->cache_error.is_ok());
  EXPECT_TRUE(probed->file.empty());
  std::filesystem::remove(folder_ + ".file");
}

TEST(MachineProbe, MeasuresEverythingThatRunsHere) {
  const std::vector<int> counts{1, 2};
  const auto profile = probe_machine(counts, kQuick);
  ASSERT_TRUE(profile.is_ok());
  ASSERT_EQ(profile->threads.size(), 2u);
  EXPECT_GT(profile->memory_buffer_bytes, 0);
  for (const ThreadProfile& t : profile->threads) {
    EXPECT_GT(t.read_small_pages.best, 0);
    EXPECT_GE(t.read_small_pages.best, t.read_small_pages.median);
    EXPECT_GT(t.read_huge_pages.best, 0);
    EXPECT_EQ(t.barrier_seconds > 0, t.num_threads > 1);
    EXPECT_GT(t.stage_seconds, 0);
    std::size_t levels = 0;
    for (Isa isa : kAllIsas) {
      if (!isa_runnable(isa)) {
        EXPECT_EQ(t.peak(isa, Arithmetic::kF32), 0);
        continue;
      }
      ++levels;
      for (Arithmetic arithmetic : {Arithmetic::kInt8, Arithmetic::kBf16, Arithmetic::kF32})
        EXPECT_GT(t.peak(isa, arithmetic), 0) << isa_name(isa);
    }
    EXPECT_EQ(t.compute.size(), levels);
    for (const auto& cache : t.caches) EXPECT_GT(cache.read.best, 0) << cache.level;
  }
}

TEST(MachineProbe, CountsOfThreads) {
  EXPECT_EQ(probe_thread_counts(1), (std::vector<int>{1}));
  EXPECT_EQ(probe_thread_counts(2), (std::vector<int>{1, 2}));
  EXPECT_EQ(probe_thread_counts(6), (std::vector<int>{1, 2, 3, 4, 6}));
  EXPECT_EQ(probe_thread_counts(64), (std::vector<int>{1, 2, 3, 4, 8, 16, 32, 64}));
}

}  // namespace
}  // namespace millrace
