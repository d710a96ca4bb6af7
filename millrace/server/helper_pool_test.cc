#include "millrace/server/helper_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>

namespace millrace {
namespace {

constexpr std::chrono::seconds kPatience{20};

// A conversation of eight megabytes took the only thread for a second, under load for ten, and everybody else's questions waited.
TEST(HelperPool, LargeJobsLeaveAThreadToTheOthers) {
  std::promise<void> release;
  const std::shared_future<void> released = release.get_future().share();
  std::atomic<int> num_large_begun{0};
  std::promise<void> small_done, all_large_done;
  HelperPool pool(2, 100, int64_t{1} << 30);
  for (int i = 0; i < 3; ++i) {
    const auto large = [&, i] {
      ++num_large_begun;
      released.wait();
      if (i == 2) all_large_done.set_value();
    };
    ASSERT_TRUE(pool.submit(large, HelperPool::kLargeJobBytes));
  }
  ASSERT_TRUE(pool.submit([&] { small_done.set_value(); }, 100));
  EXPECT_EQ(small_done.get_future().wait_for(kPatience), std::future_status::ready) << "the small job waits behind the large ones";
  EXPECT_LE(num_large_begun.load(), 1);
  release.set_value();
  EXPECT_EQ(all_large_done.get_future().wait_for(kPatience), std::future_status::ready) << "large jobs are done in the end";
}

TEST(HelperPool, OneThreadDoesAllInOrder) {
  std::vector<int> order;
  std::promise<void> done;
  HelperPool pool(1, 100, int64_t{1} << 30);
  for (int i = 0; i < 6; ++i) {
    ASSERT_TRUE(pool.submit(
        [&, i] {
          order.push_back(i);
          if (i == 5) done.set_value();
        },
        i % 2 == 0 ? HelperPool::kLargeJobBytes : 1));
  }
  ASSERT_EQ(done.get_future().wait_for(kPatience), std::future_status::ready);
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4, 5}));
}

TEST(HelperPool, RefusesWhatItsBoundsDoNotHold) {
  std::promise<void> release, begun;
  const std::shared_future<void> released = release.get_future().share();
  HelperPool pool(1, 2, 100);
  ASSERT_TRUE(pool.submit([&, released] { begun.set_value(), released.wait(); }, 1));
  begun.get_future().wait();
  EXPECT_TRUE(pool.submit([] {}, 500)) << "one large job is taken when nothing waits";
  EXPECT_FALSE(pool.submit([] {}, 1)) << "500 of 100 bytes are waiting";
  release.set_value();
}

}  // namespace
}  // namespace millrace
