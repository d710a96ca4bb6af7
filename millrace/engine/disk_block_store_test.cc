// What is not in memory is read or computed, whichever takes less.
#include "millrace/engine/disk_block_store.h"

#include <gtest/gtest.h>

#include "millrace/base/temporary_directory.h"
#include "millrace/engine/engine_fixture.h"

namespace millrace {
namespace {

// A tier with some blocks in it, and a clock that goes on by `tick` each time it is looked at.
struct TestStore {
  TemporaryDirectory folder;
  FakeExecutor executor{FakeNetwork({std::nullopt})};
  double now = 0, tick = 0;
  std::function<double()> clock = [this] { return now += tick; };
  std::unique_ptr<KvDiskTier> tier;
  std::optional<DiskBlockStore> store;

  TestStore() {
    MR_CHECK(executor.allocate_kv(std::vector<int64_t>{4}).is_ok(), "blocks");
    KvDiskOptions options;
    options.folder = folder.file("kv");
    options.fingerprint = "test";
    auto opened = KvDiskTier::open(options, {executor.info().kv_groups[0].block_bytes});
    MR_CHECK(opened.is_ok(), opened.status().message());
    tier = std::move(opened).value();
    store.emplace(executor, *tier, clock);
    for (uint8_t i = 0; i < 8; ++i) store->offer(0, digest(i), 0);
    tier->wait();
  }
  static BlockDigest digest(uint8_t number) {
    BlockDigest result{};
    result.bytes[0] = number;
    return result;
  }
  // Reads blocks that take so long each.
  void read(int count, double seconds) {
    tick = seconds;
    for (int i = 0; i < count; ++i) EXPECT_TRUE(store->load(0, digest(static_cast<uint8_t>(i % 8)), 1));
    tick = 0;
  }
  void compute(int count, double seconds_of_row) {
    for (int i = 0; i < count; ++i) store->observe_step(0, 64, 64 * seconds_of_row);
  }
  bool offers() { return store->contains(0, digest(1)); }
};

TEST(DiskBlockStore, ReadsUntilItIsKnownThatComputingTakesLess) {
  TestStore test;
  EXPECT_TRUE(test.offers());
  test.read(9, 1.0);
  EXPECT_TRUE(test.offers()) << "nothing was computed yet";
  test.compute(9, 0.001);  // a block: 0.032 s
  EXPECT_FALSE(test.offers());
  EXPECT_FALSE(test.store->reads());
  test.compute(9, 0.1);  // others compute, too: 3.2 s
  EXPECT_TRUE(test.offers());
}

TEST(DiskBlockStore, AFastDiskIsRead) {
  TestStore test;
  test.read(9, 0.030);
  test.compute(9, 0.001);
  EXPECT_TRUE(test.offers());
}

TEST(DiskBlockStore, ASlowDiskIsTriedAgainAndBelievedWhenItIsFast) {
  TestStore test;
  test.read(9, 1.0);
  test.compute(9, 0.001);
  EXPECT_FALSE(test.offers());
  test.now += 29;
  EXPECT_FALSE(test.offers());
  test.now += 2;
  EXPECT_TRUE(test.offers());
  test.read(1, 1.0);
  EXPECT_FALSE(test.offers()) << "still slow";
  test.now += 31;
  test.read(9, 0.001);
  EXPECT_TRUE(test.offers());
}

TEST(DiskBlockStore, StepsThatDecodeTellNothing) {
  TestStore test;
  test.read(9, 1.0);
  for (int i = 0; i < 9; ++i) test.store->observe_step(64, 64, 0.001), test.store->observe_step(3, 0, 0.001);
  EXPECT_TRUE(test.offers());
}

}  // namespace
}  // namespace millrace
