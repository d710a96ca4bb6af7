#include "millrace/engine/suffix_forest.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

namespace millrace {
namespace {

using Tokens = std::vector<int32_t>;

// The judge: looks through all the runs.
struct Runs {
  int64_t depth_max;
  std::deque<Tokens> runs;

  int64_t num_tokens() const {
    int64_t sum = 0;
    for (const Tokens& run : runs) sum += static_cast<int64_t>(run.size());
    return sum;
  }
  std::optional<std::pair<int32_t, std::pair<int32_t, int32_t>>> next(const Tokens& text) const {
    std::map<int32_t, std::pair<int32_t, int32_t>> after;  // count, last place
    int32_t of = 0, place = 0;
    for (const Tokens& run : runs) {
      for (std::size_t i = 0; i + text.size() <= run.size(); ++i, ++place) {
        if (!std::equal(text.begin(), text.end(), run.begin() + static_cast<std::ptrdiff_t>(i))) continue;
        ++of;
        if (i + text.size() < run.size()) ++after[run[i + text.size()]].first, after[run[i + text.size()]].second = place;
      }
    }
    if (after.empty() || static_cast<int64_t>(text.size()) >= depth_max) return std::nullopt;
    const auto best = std::max_element(after.begin(), after.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
    return {{best->first, {best->second.first, of}}};
  }
  bool contains(const Tokens& text) const {
    for (const Tokens& run : runs) {
      if (std::search(run.begin(), run.end(), text.begin(), text.end()) != run.end()) return true;
    }
    return false;
  }
};

void expect_equal(SuffixForest& forest, int32_t root, const Runs& runs, const Tokens& text) {
  const auto place = forest.find(root, text);
  const bool expected = static_cast<int64_t>(text.size()) <= runs.depth_max && runs.contains(text);
  ASSERT_EQ(place.has_value(), expected) << testing::PrintToString(text);
  if (!expected) return;
  const auto got = forest.next(*place);
  const auto next = runs.next(text);
  ASSERT_EQ(got.has_value(), next.has_value()) << testing::PrintToString(text);
  if (!next) return;
  EXPECT_EQ(got->token, next->first) << testing::PrintToString(text);
  EXPECT_EQ(got->count, next->second.first) << testing::PrintToString(text);
  EXPECT_EQ(got->of, next->second.second) << testing::PrintToString(text);
}

TEST(SuffixForest, KnowsWhatCameAfterATextMostOften) {
  SuffixForest forest(8, 100);
  const int32_t root = forest.plant();
  forest.add(root, Tokens{1, 2, 3, 9});
  forest.add(root, Tokens{1, 2, 4});
  forest.add(root, Tokens{5, 1, 2, 4});
  auto next = forest.next(*forest.find(root, Tokens{1, 2}));
  EXPECT_EQ(next->token, 4);
  EXPECT_EQ(next->count, 2);
  EXPECT_EQ(next->of, 3);
  EXPECT_FALSE(forest.next(next->place).has_value());  // 1 2 4 only ends runs
  next = forest.next(*forest.find(root, Tokens{2, 3}));
  EXPECT_EQ(next->token, 9);
  EXPECT_FALSE(forest.find(root, Tokens{3, 4}).has_value());
  forest.remove_oldest();
  EXPECT_FALSE(forest.find(root, Tokens{2, 3}).has_value());
  EXPECT_EQ(forest.next(*forest.find(root, Tokens{1, 2}))->of, 2);
}

TEST(SuffixForest, PrefersTheLatestOfEquals) {
  SuffixForest forest(4, 100);
  const int32_t root = forest.plant();
  forest.add(root, Tokens{1, 2, 7});
  forest.add(root, Tokens{1, 2, 8});
  EXPECT_EQ(forest.next(*forest.find(root, Tokens{1, 2}))->token, 8);
  forest.add(root, Tokens{1, 2, 7});
  EXPECT_EQ(forest.next(*forest.find(root, Tokens{1, 2}))->token, 7);
  forest.remove_oldest();
  EXPECT_EQ(forest.next(*forest.find(root, Tokens{1, 2}))->token, 7);  // once each again, and 7 was the later
}

// Every text of up to a few tokens, in every tree, after every change, whatever comes and goes.
TEST(SuffixForest, AgreesWithLookingThroughTheRuns) {
  for (const int64_t depth_max : {2, 3, 5, 9, 40}) {
    for (const int32_t vocab_size : {1, 2, 3, 7}) {
      std::mt19937 random(static_cast<uint32_t>(depth_max * 100 + vocab_size));
      SuffixForest forest(depth_max, 100);
      std::vector<int32_t> roots = {forest.plant(), forest.plant()};
      std::vector<Runs> runs(2, Runs{depth_max, {}});
      std::deque<std::size_t> order;
      int64_t removed = 0;
      for (int event = 0; event < 60; ++event) {
        if (!order.empty() && (random() % 3 == 0 || forest.num_tokens() > 80)) {
          const std::size_t tree = order.front();
          order.pop_front();
          ASSERT_EQ(forest.remove_oldest(), roots[tree]);
          runs[tree].runs.pop_front();
          ++removed;
          if (runs[tree].runs.empty()) {
            forest.cut(roots[tree]);
            roots[tree] = forest.plant();
          }
        } else {
          const std::size_t tree = random() % 3 == 0 ? 1 : 0;
          Tokens run(1 + random() % 20);
          for (int32_t& token : run) token = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab_size));
          forest.add(roots[tree], run);
          runs[tree].runs.push_back(run);
          order.push_back(tree);
        }
        ASSERT_EQ(forest.num_tokens(), runs[0].num_tokens() + runs[1].num_tokens());
        ASSERT_LE(forest.num_nodes(), 2 * forest.num_tokens() + 2);
        std::set<Tokens> texts;
        for (const Runs& of_tree : runs) {
          for (const Tokens& run : of_tree.runs) {
            for (std::size_t begin = 0; begin < run.size(); ++begin) {
              for (const std::size_t length : {1, 2, 3, 4, 6, 9, 17}) {
                if (begin + length > run.size()) break;
                texts.insert({run.begin() + static_cast<std::ptrdiff_t>(begin), run.begin() + static_cast<std::ptrdiff_t>(begin + length)});
              }
            }
          }
        }
        for (int i = 0; i < 10; ++i) {
          Tokens text(1 + random() % 5);
          for (int32_t& token : text) token = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab_size + 1));
          texts.insert(text);
        }
        for (const std::size_t tree : {0, 1}) {
          ASSERT_EQ(forest.num_runs(roots[tree]), static_cast<int64_t>(runs[tree].runs.size()));
          for (const Tokens& text : texts) expect_equal(forest, roots[tree], runs[tree], text);
        }
        if (testing::Test::HasFailure()) FAIL() << "depth " << depth_max << ", vocabulary " << vocab_size << ", event " << event;
      }
      EXPECT_GT(removed, 10);
      while (forest.num_tokens() > 0) forest.remove_oldest();
      EXPECT_EQ(forest.num_nodes(), 2);
    }
  }
}

// Runs that come and go for ever take the memory that was set aside.
TEST(SuffixForest, TakesNoMoreMemoryThanWasSetAside) {
  constexpr int64_t kTokensMax = 4096;
  SuffixForest forest(64, kTokensMax);
  const int64_t set_aside = forest.memory_bytes();
  EXPECT_LE(set_aside, kTokensMax * 101);
  const int32_t root = forest.plant();
  std::mt19937 random(3);
  for (int i = 0; i < 3000; ++i) {
    Tokens run(1 + random() % 200);
    const int32_t vocab_size = random() % 2 == 0 ? 3 : 50000;
    for (int32_t& token : run) token = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab_size));
    while (forest.num_tokens() + static_cast<int64_t>(run.size()) > kTokensMax) forest.remove_oldest();
    forest.add(root, run);
    ASSERT_LE(forest.num_nodes(), 2 * forest.num_tokens() + 1);
  }
  // The lists of runs and of free nodes are all that grows: as far as both go at most.
  EXPECT_LE(forest.memory_bytes(), set_aside + kTokensMax * 16);
}

}  // namespace
}  // namespace millrace
