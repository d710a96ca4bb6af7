#include "millrace/engine/engine_fixture.h"
#include "millrace/engine/simulation_seeds.h"

// The whole engine under random options and events, with a hash for a network: requests of every kind arrive, are cancelled in any state
// and run out of time, on a clock of the test's own. Whatever happens to the others, each gets the tokens of the judge, or their beginning
// where it was ended; nothing is left behind. docs/design.md D5 and D7.
namespace millrace {
namespace {

constexpr int64_t kEvents = 150;    // of a run, besides the steps that end it
constexpr int64_t kVocabSize = 11;  // few tokens: drafts and stop tokens are right now and then
constexpr int64_t kMaxPositions = 200;

struct Totals {
  int64_t events = 0, finished = 0, stopped = 0, cancelled = 0, timed_out = 0, refused = 0, beams = 0, scored = 0, preemptions = 0,
          hits = 0, drafted = 0, accepted = 0;
  void add(const Totals& other) {
    events += other.events, finished += other.finished, stopped += other.stopped, cancelled += other.cancelled;
    timed_out += other.timed_out, refused += other.refused, beams += other.beams, scored += other.scored;
    preemptions += other.preemptions, hits += other.hits, drafted += other.drafted, accepted += other.accepted;
  }
};

class EngineSimulation {
 public:
  explicit EngineSimulation(uint64_t seed)
      : random_(seed), network_(pick_windows(), kVocabSize), test_(network_, make_options(), nullptr, kMaxPositions) {
    for (auto& prefix : prefixes_) prefix = some_tokens(kMaxPositions / 2);
  }

  Totals run() {
    for (int64_t i = 0; i < kEvents && !testing::Test::HasFatalFailure(); ++i) {
      const int64_t kind = pick(0, 99);
      if (kind < 20 && live_.size() < 24) {
        add();
      } else if (kind < 23 && !live_.empty()) {
        cancel(std::next(live_.begin(), pick(0, static_cast<int64_t>(live_.size()) - 1))->first);
      } else {
        step();
      }
      ++totals_.events;
    }
    finish();
    const EngineMetrics metrics = test_.engine->metrics();
    totals_.preemptions = metrics.num_preemptions, totals_.hits = metrics.prefix_cache_hits;
    totals_.drafted = metrics.num_draft_tokens, totals_.accepted = metrics.num_accepted_tokens;
    return totals_;
  }

 private:
  int64_t pick(int64_t low, int64_t high) { return low + static_cast<int64_t>(random_() % static_cast<uint64_t>(high - low + 1)); }
  bool one_in(int64_t n) { return pick(1, n) == 1; }

  std::vector<int32_t> some_tokens(int64_t most) {
    std::vector<int32_t> tokens(static_cast<std::size_t>(pick(1, most)));
    for (int32_t& token : tokens) token = static_cast<int32_t>(pick(0, kVocabSize - 1));
    return tokens;
  }

  std::vector<std::optional<int64_t>> pick_windows() {
    switch (pick(0, 4)) {
      case 0: return {17};
      case 1: return {std::nullopt, 40};
      case 2: return {64, std::nullopt, 5};
      default: return {std::nullopt};
    }
  }

  EngineOptions make_options() {
    EngineOptions options;
    options.max_running_sequences = pick(4, 12);
    options.step_tokens_max = options.max_running_sequences + pick(0, 60);
    options.prefill_chunk_max = pick(1, 64);
    // One sequence of the whole context fits, or many do.
    const int64_t blocks = kMaxPositions / kKvBlockTokens + 2;
    options.kv_bytes = fake_kv_bytes(static_cast<int64_t>(network_.windows().size()) * (one_in(2) ? blocks + pick(0, 8) : 20 * blocks));
    options.prefix_cache = !one_in(4);
    options.max_queued_requests = one_in(4) ? pick(1, 4) : 1000;
    options.max_queued_tokens = one_in(4) ? pick(200, 600) : 1 << 20;
    if (one_in(3)) options.tpot_target_seconds = 0.001 * static_cast<double>(pick(1, 20));
    for (int64_t client = pick(0, 2); client > 0; --client) options.client_weights.push_back(static_cast<double>(pick(1, 8)) / 4);
    if (!one_in(3)) {
      options.speculation = {.method = one_in(2) ? SpeculationMethod::kNgram : SpeculationMethod::kSuffix,
                             .num_speculative_tokens = pick(1, 9),
                             .prompt_lookup_min = 1,
                             .past_output = {.num_outputs_max = pick(0, 30), .num_tokens_max = pick(1, 600), .depth_max = pick(2, 20)},
                             .adaptive = one_in(2)};
    }
    options.cache_secret = "simulation";
    options.eos_token_ids = {3};
    options.clock = [this] { return now_; };
    return options;
  }

  GenerationRequest make_request() {
    GenerationRequest request;
    const std::vector<int32_t>& prefix = prefixes_[static_cast<std::size_t>(pick(0, 2))];
    request.prompt_tokens.assign(prefix.begin(), prefix.begin() + pick(1, static_cast<int64_t>(prefix.size())));
    if (!one_in(3)) {
      const std::vector<int32_t> more = some_tokens(30);
      request.prompt_tokens.insert(request.prompt_tokens.end(), more.begin(), more.end());
    }
    request.max_tokens = one_in(20) ? 0 : pick(1, 60);
    request.seed = random_();
    request.priority = one_in(8) ? static_cast<int32_t>(pick(-1, 1)) : 0;
    request.client = static_cast<int32_t>(pick(0, 2));
    if (one_in(4)) request.cache_salt = "other";
    if (one_in(8)) request.timeout = 0.001 * static_cast<double>(pick(1, 300));
    if (one_in(10)) {
      request.beams = BeamParams{.length_penalty = one_in(2) ? 1.0 : 0.5};
      request.n = static_cast<int32_t>(pick(1, 4));
      request.max_tokens = pick(1, 20);
      return request;
    }
    if (one_in(4)) request.n = static_cast<int32_t>(pick(2, 4));
    if (one_in(6)) request.num_prompt_logprobs = static_cast<int32_t>(pick(0, 3));
    request.ignore_eos = !one_in(4);
    if (one_in(4)) request.stop_token_ids = {static_cast<int32_t>(pick(0, kVocabSize - 1))};
    request.sampling.temperature = one_in(2) ? 0.0f : 1.0f;
    if (one_in(4)) request.sampling.top_k = 3;
    if (one_in(4)) request.sampling.repetition_penalty = 1.3f;
    if (one_in(6)) request.sampling.mirostat = 2;
    if (one_in(3)) request.sampling.logit_bias = {{static_cast<int32_t>(pick(0, kVocabSize - 1)), 6.0f}};
    if (one_in(8)) request.sampling.num_logprobs = 2;
    return request;
  }

  void add() {
    GenerationRequest request = make_request();
    const auto log = std::make_shared<Log>();
    const auto added = test_.engine->add(request, [log](OutputDelta& delta) {
      TestEngine::record(*log, delta);
      log->num_prompt_logprobs += static_cast<int64_t>(delta.prompt_logprobs.size());
    });
    if (!added.is_ok()) {
      ASSERT_EQ(added.status().code(), StatusCode::kResourceExhausted) << added.status().message();
      ++totals_.refused;
      return;
    }
    live_.emplace(*added, Live{std::move(request), log});
  }

  // It and its blocks are gone within one step, in whatever state it was.
  void cancel(RequestId id) {
    test_.engine->cancel(id);
    step();
    ASSERT_FALSE(live_.contains(id)) << "a cancelled request outlived a step";
  }

  bool step() {
    now_ += 0.0005 * static_cast<double>(pick(1, 8));
    const bool busy = test_.engine->step();
    for (auto live = live_.begin(); live != live_.end();) {
      if (live->second.log->finished) {
        check(live->second);
        live = live_.erase(live);
      } else {
        ++live;
      }
    }
    EXPECT_EQ(test_.engine->metrics().num_live_requests, static_cast<int64_t>(live_.size()));
    return busy;
  }

  struct Log : RequestLog {
    int64_t num_prompt_logprobs = 0;
  };
  struct Live {
    GenerationRequest request;
    std::shared_ptr<Log> log;
  };

  void check(const Live& live) {
    const GenerationRequest& request = live.request;
    const Log& log = *live.log;
    ++totals_.finished;
    ASSERT_EQ(static_cast<int32_t>(log.sequences.size()), request.n);
    if (request.beams) return check_beams(live);
    if (request.num_prompt_logprobs >= 0) ++totals_.scored;
    for (const auto& [index, sequence] : log.sequences) {
      std::vector<int32_t> expected =
          reference_completion(network_, request.prompt_tokens, request.sampling, request.seed, index, *request.max_tokens);
      const auto stops = [&](int32_t token) {
        return (token == 3 && !request.ignore_eos) || std::count(request.stop_token_ids.begin(), request.stop_token_ids.end(), token) > 0;
      };
      const auto stop = std::find_if(expected.begin(), expected.end(), stops);
      const bool stopped = stop != expected.end();
      if (stopped) expected.erase(stop + 1, expected.end());
      ASSERT_TRUE(sequence.reason.has_value());
      if (count_if_ended(*sequence.reason)) {
        ASSERT_LE(sequence.tokens.size(), expected.size());
        expected.resize(sequence.tokens.size());
      } else {
        ASSERT_EQ(*sequence.reason, stopped ? FinishReason::kStop : FinishReason::kLength) << sequence.error.message();
        if (stopped) ++totals_.stopped;
        const bool scored = request.num_prompt_logprobs >= 0;
        ASSERT_EQ(log.num_prompt_logprobs, scored ? static_cast<int64_t>(request.prompt_tokens.size()) - 1 : 0);
      }
      ASSERT_EQ(sequence.tokens, expected) << "sequence " << index;
    }
  }

  // Beams' judge is an engine where nothing else runs and nothing is scarce.
  void check_beams(const Live& live) {
    ++totals_.beams;
    TestEngine alone(network_, {.prefix_cache = false, .eos_token_ids = {3}}, nullptr, kMaxPositions);
    GenerationRequest request = live.request;
    request.timeout.reset();
    const RequestId id = alone.add(request);
    alone.run();
    for (const auto& [index, sequence] : live.log->sequences) {
      ASSERT_TRUE(sequence.reason.has_value());
      if (count_if_ended(*sequence.reason)) continue;
      ASSERT_EQ(sequence.reason, alone.logs[id].sequences[index].reason);
      ASSERT_EQ(sequence.tokens, alone.logs[id].sequences[index].tokens) << "beam " << index;
    }
  }

  bool count_if_ended(FinishReason reason) {
    if (reason == FinishReason::kAbort) ++totals_.cancelled;
    if (reason == FinishReason::kTimeout) ++totals_.timed_out;
    return reason == FinishReason::kAbort || reason == FinishReason::kTimeout;
  }

  // No starvation: without arrivals everything ends, within steps enough to compute each row ten times alone.
  void finish() {
    int64_t steps_left = 10;
    for (const auto& [id, live] : live_) {
      steps_left += 10 * (static_cast<int64_t>(live.request.prompt_tokens.size()) + live.request.n * *live.request.max_tokens);
    }
    while (!testing::Test::HasFatalFailure() && step()) {
      ASSERT_GT(steps_left--, 0) << "starvation";
      ++totals_.events;
    }
    ASSERT_TRUE(live_.empty()) << "idle, and requests live";
    ASSERT_EQ(test_.num_used_blocks(), 0);
    const EngineMetrics metrics = test_.engine->metrics();
    ASSERT_EQ(metrics.num_running_sequences + metrics.num_waiting_sequences, 0);
  }

  std::mt19937_64 random_;
  double now_ = 0;
  FakeNetwork network_;
  TestEngine test_;
  std::map<RequestId, Live> live_;
  std::array<std::vector<int32_t>, 3> prefixes_;
  Totals totals_;
};

TEST(EngineSimulation, EveryRequestGetsItsOwnTokensForEverySeed) {
  const SimulationSeeds seeds = simulation_seeds(10000, 300);
  const Totals totals = simulate<Totals>(seeds, [](uint64_t seed) { return EngineSimulation(seed).run(); });
  fmt::print(
      "{} seeds, {} events: {} requests ({} beam searches, {} with prompt logprobs), {} sequences stopped, {} cancelled, {} timed out; {} "
      "requests refused, {} preemptions, {} cached tokens, {} of {} draft tokens accepted\n",
      seeds.count, totals.events, totals.finished, totals.beams, totals.scored, totals.stopped, totals.cancelled, totals.timed_out,
      totals.refused, totals.preemptions, totals.hits, totals.accepted, totals.drafted);
  if (HasFatalFailure() || seeds.count < 100) return;
  for (const int64_t count : {totals.beams, totals.scored, totals.stopped, totals.cancelled, totals.timed_out, totals.refused}) {
    EXPECT_GT(count, seeds.count / 4);
  }
  EXPECT_GT(totals.preemptions, seeds.count / 4);
  EXPECT_GT(totals.hits, seeds.count * 32);
  EXPECT_GT(totals.accepted, seeds.count * 10);
  EXPECT_GT(totals.drafted - totals.accepted, seeds.count * 10);
}

}  // namespace
}  // namespace millrace
