#include "millrace/engine/block_allocator.h"

#include <gtest/gtest.h>

#include <random>

namespace millrace {
namespace {

BlockDigest digest_of(int32_t value) {
  std::array<int32_t, kKvBlockTokens> tokens{};
  tokens[0] = value;
  return PrefixHasher::next(BlockDigest(), tokens);
}

TEST(PrefixHasher, EveryPartOfTheKeyMatters) {
  const PrefixHasher hasher("secret");
  EXPECT_EQ(hasher.root("a", false), hasher.root("a", false));
  EXPECT_NE(hasher.root("a", false), hasher.root("b", false));
  EXPECT_NE(hasher.root("a", false), hasher.root("a", true));
  EXPECT_NE(hasher.root("a", false), PrefixHasher("other").root("a", false));
  EXPECT_NE(PrefixHasher("ab").root("c", false), PrefixHasher("a").root("bc", false));
  std::array<int32_t, kKvBlockTokens> tokens{};
  const BlockDigest first = PrefixHasher::next(hasher.root("a", false), tokens);
  EXPECT_NE(first, PrefixHasher::next(hasher.root("b", false), tokens));
  EXPECT_NE(first, PrefixHasher::next(first, tokens));
  tokens[31] = 1;
  EXPECT_NE(first, PrefixHasher::next(hasher.root("a", false), tokens));
}

TEST(BlockAllocator, GivesEachBlockOnce) {
  BlockAllocator allocator(std::vector<int64_t>{3, 1});
  EXPECT_EQ(allocator.allocate(0), 0);
  EXPECT_EQ(allocator.allocate(0), 1);
  EXPECT_EQ(allocator.allocate(0), 2);
  EXPECT_EQ(allocator.allocate(0), std::nullopt);
  EXPECT_EQ(allocator.allocate(1), 0);
  allocator.release(0, 1);
  EXPECT_EQ(allocator.num_free(0), 1);
  EXPECT_EQ(allocator.allocate(0), 1);
  EXPECT_EQ(allocator.check_integrity(), "");
}

TEST(BlockAllocator, SharedPrefixIsFreedByTheLastReader) {
  BlockAllocator allocator(std::vector<int64_t>{2});
  const int32_t block = *allocator.allocate(0);
  EXPECT_TRUE(allocator.insert(0, block, digest_of(1)));
  allocator.add_reference(0, block);
  allocator.release(0, block);
  EXPECT_EQ(allocator.num_used(0), 1);
  allocator.release(0, block);
  EXPECT_EQ(allocator.num_used(0), 0);
  EXPECT_EQ(allocator.num_cached(0), 1);
  EXPECT_EQ(allocator.find(0, digest_of(1)), block);
  allocator.add_reference(0, block);  // back from the cache
  EXPECT_EQ(allocator.num_cached(0), 0);
  EXPECT_EQ(allocator.num_used(0), 1);
  EXPECT_EQ(allocator.check_integrity(), "");
}

TEST(BlockAllocator, TakesTheCachedBlockThatWasUsedLongestAgo) {
  BlockAllocator allocator(std::vector<int64_t>{3});
  for (int32_t i = 0; i < 3; ++i) allocator.insert(0, *allocator.allocate(0), digest_of(i));
  for (const int32_t block : {1, 0, 2}) allocator.release(0, block);
  allocator.add_reference(0, 1);  // used again: now the youngest
  allocator.release(0, 1);
  EXPECT_EQ(allocator.allocate(0), 0);
  EXPECT_EQ(allocator.find(0, digest_of(0)), std::nullopt);
  EXPECT_EQ(allocator.allocate(0), 2);
  EXPECT_EQ(allocator.allocate(0), 1);
  EXPECT_EQ(allocator.allocate(0), std::nullopt);
  EXPECT_EQ(allocator.check_integrity(), "");
}

TEST(BlockAllocator, TheFirstBlockWithAKeyKeepsIt) {
  BlockAllocator allocator(std::vector<int64_t>{2});
  const int32_t first = *allocator.allocate(0), second = *allocator.allocate(0);
  EXPECT_TRUE(allocator.insert(0, first, digest_of(7)));
  EXPECT_FALSE(allocator.insert(0, second, digest_of(7)));
  allocator.release(0, second);
  EXPECT_EQ(allocator.num_free(0), 1);  // not cached: nobody could find it
  allocator.forget(0, first);
  allocator.release(0, first);
  EXPECT_EQ(allocator.num_free(0), 2);
  EXPECT_EQ(allocator.check_integrity(), "");
}

TEST(BlockAllocator, DiesRatherThanFreeABlockTwice) {
  BlockAllocator allocator(std::vector<int64_t>{2});
  const int32_t block = *allocator.allocate(0);
  allocator.release(0, block);
  EXPECT_DEATH(allocator.release(0, block), "nobody's use");
  EXPECT_DEATH(allocator.add_reference(0, block), "cannot be shared");
}

TEST(BlockAllocator, StaysWholeUnderRandomUse) {
  std::mt19937 random(3);
  BlockAllocator allocator(std::vector<int64_t>{40, 7});
  std::vector<std::pair<int64_t, int32_t>> held;  // one entry a reference
  for (int i = 0; i < 20000; ++i) {
    const int64_t group = random() % 2;
    const BlockDigest digest = digest_of(static_cast<int32_t>(random() % 60));
    switch (random() % 4) {
      case 0:
      case 1:
        if (const auto found = allocator.find(group, digest)) {
          allocator.add_reference(group, *found);
          held.emplace_back(group, *found);
        } else if (const auto block = allocator.allocate(group)) {
          held.emplace_back(group, *block);
          if (random() % 2 == 0) {
            EXPECT_TRUE(allocator.insert(group, *block, digest));
          }
        } else {
          EXPECT_EQ(allocator.num_available(group), 0);
        }
        break;
      case 2:
      case 3:
        if (held.empty()) break;
        std::swap(held[random() % held.size()], held.back());
        if (random() % 8 == 0) allocator.forget(held.back().first, held.back().second);
        allocator.release(held.back().first, held.back().second);
        held.pop_back();
        break;
    }
    if (i % 64 == 0) {
      ASSERT_EQ(allocator.check_integrity(), "") << "event " << i;
    }
  }
  for (const auto& [group, block] : held) allocator.release(group, block);
  EXPECT_EQ(allocator.num_used(0) + allocator.num_used(1), 0);
  EXPECT_EQ(allocator.check_integrity(), "");
}

}  // namespace
}  // namespace millrace
