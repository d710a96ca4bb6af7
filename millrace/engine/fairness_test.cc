#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <memory>

#include "millrace/engine/scheduler.h"

// Shares of the machine between clients: the virtual token counter of Sheng et al. 2024, arXiv:2401.00588.
namespace millrace {
namespace {

constexpr int64_t kPromptMax = 90, kTokensMax = 40, kRunning = 4;

// Clients that send requests, and a scheduler that answers them.
class Load {
 public:
  explicit Load(std::vector<double> weights)
      : allocator_(std::vector<int64_t>{1000}),
        scheduler_({.max_running_sequences = kRunning,
                    .step_tokens_max = 64,
                    .prefill_chunk_max = 64,
                    .windows = {std::nullopt},
                    .client_weights = std::move(weights)},
                   allocator_) {}

  void add(int32_t client, int64_t num_prompt_tokens, int64_t max_tokens) {
    Request& request = *requests_.emplace_back(std::make_unique<Request>());
    request.client = client;
    request.arrival = ++num_added_;
    request.shares_prefix = false;
    request.tokens.assign(static_cast<std::size_t>(num_prompt_tokens), 1);
    request.num_prompt_tokens = num_prompt_tokens;
    request.max_tokens = max_tokens;
    scheduler_.add(request);
  }

  void step() {
    std::vector<Request*> wanting;
    for (const Scheduler::Planned& planned : scheduler_.plan_step()) {
      if (planned.wants_token()) wanting.push_back(static_cast<Request*>(planned.sequence));
    }
    scheduler_.commit_step();
    for (Request* request : wanting) {
      request->tokens.push_back(1);
      if (request->num_tokens() - request->num_prompt_tokens < request->max_tokens) continue;
      scheduler_.remove(*request);
      std::erase_if(requests_, [&](const auto& other) { return other.get() == request; });
    }
  }

  int64_t num_waiting(int32_t client) const {
    return std::count_if(requests_.begin(), requests_.end(),
                         [&](const auto& request) { return request->client == client && request->state == SequenceState::kWaiting; });
  }
  int64_t num_live(int32_t client) const {
    return std::count_if(requests_.begin(), requests_.end(), [&](const auto& request) { return request->client == client; });
  }
  double service(int32_t client) const { return scheduler_.service(client); }

 private:
  struct Request : Sequence {
    int64_t max_tokens = 1;
  };
  BlockAllocator allocator_;
  Scheduler scheduler_;
  std::deque<std::unique_ptr<Request>> requests_;
  uint64_t num_added_ = 0;
};

// What the requests that run together can be given beyond what others were, over the smallest weight (theorem 4.4 of the paper).
constexpr double bound(double smallest_weight) { return 2.0 * kRunning * (kPromptMax + 2 * kTokensMax) / smallest_weight; }

TEST(Fairness, ClientsThatAlwaysAskGetTheirShares) {
  const std::vector<double> weights = {1, 3, 0.5};
  Load load(weights);
  std::array<double, 3> begun{};
  for (int step = 0; step < 20'000; ++step) {
    // Long prompts with short answers, short ones with long answers, and many of both: shares are of tokens, not of requests.
    while (load.num_waiting(0) < 3) load.add(0, kPromptMax, 2);
    while (load.num_waiting(1) < 30) load.add(1, 5, kTokensMax);
    while (load.num_waiting(2) < 8) load.add(2, 40, 10);
    load.step();
    for (int32_t a = 0; a < 3; ++a) {
      for (int32_t b = 0; b < a; ++b) ASSERT_LE(std::abs(load.service(a) - load.service(b)), bound(0.5)) << "step " << step;
    }
    if (step == 100) begun = {load.service(0), load.service(1), load.service(2)};
  }
  for (const int32_t client : {0, 1, 2}) EXPECT_GT(load.service(client) - begun[static_cast<std::size_t>(client)], 2 * bound(0.5));
}

TEST(Fairness, AFloodKeepsNobodyWaiting) {
  Load load({});
  for (int i = 0; i < 500; ++i) load.add(0, 20, 20);
  for (int i = 0; i < 50; ++i) load.step();
  load.add(1, 20, 20);
  int steps = 0;
  for (; load.num_live(1) > 0 && steps < 100; ++steps) load.step();
  EXPECT_LT(steps, 50) << "the wait for a place, and its own tokens";
  EXPECT_GT(load.num_waiting(0), 400);
}

TEST(Fairness, APauseEarnsNothing) {
  Load load({});
  load.add(1, 10, 5);
  for (int i = 0; i < 2000; ++i) {
    while (load.num_waiting(0) < 2) load.add(0, 30, 10);
    load.step();
  }
  const double others = load.service(0), own = load.service(1);
  EXPECT_GT(others, own + 10 * bound(1));
  // From now on both ask: the one that paused does not get everything until it has caught up.
  for (int i = 0; i < 300; ++i) {
    while (load.num_waiting(0) < 2) load.add(0, 30, 10);
    while (load.num_waiting(1) < 2) load.add(1, 30, 10);
    load.step();
    ASSERT_LE(std::abs(load.service(0) - load.service(1)), bound(1));
  }
  EXPECT_GT(load.service(0), others + bound(1) / 2);
}

TEST(Fairness, OneClientIsServedInOrderOfArrival) {
  Load load({});
  for (int i = 0; i < 40; ++i) load.add(7, 1 + i % 50, 1 + i % 7);
  int64_t waiting = 40;
  while (load.num_live(7) > 0) {
    load.step();
    EXPECT_LE(load.num_waiting(7), waiting);
    waiting = load.num_waiting(7);
  }
}

}  // namespace
}  // namespace millrace
