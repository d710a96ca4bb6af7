// Networks with a state in place of keys and values, through the engine: whatever the chunks, the company, the memory, the prefix cache and
// cancelled neighbours, a sequence gets the tokens that it gets alone.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "millrace/base/test_data.h"
#include "millrace/engine/beam_search.h"
#include "millrace/engine/engine.h"
#include "millrace/engine/loaded_model.h"

namespace millrace {
namespace {

constexpr const char* kModels[] = {"lfm2", "lfm2-adjusted", "lfm2_moe", "mamba", "falcon_mamba", "mamba2", "mamba2-limited"};

using Completions = std::map<int32_t, std::vector<int32_t>>;  // by sequence of the request

class StateEngine {
 public:
  StateEngine(const std::string& name, EngineOptions options, GemmPath path = GemmPath::kFast) {
    auto loaded = LoadedModel::load((source_dir() / "tests/golden/models" / name).string(), {.num_threads = 2});
    MR_CHECK(loaded.is_ok(), loaded.status().message());
    model_ = std::move(loaded).value();
    auto made = model_->make_executor(path, KvDType::kBf16, static_cast<int32_t>(options.step_tokens_max));
    MR_CHECK(made.is_ok(), made.status().message());
    executor_ = std::move(made).value();
    auto engine = Engine::create(*executor_, nullptr, std::move(options));
    MR_CHECK(engine.is_ok(), engine.status().message());
    engine_ = std::move(engine).value();
  }

  Engine& engine() { return *engine_; }
  const ExecutorInfo& info() const { return executor_->info(); }

  RequestId add(const GenerationRequest& request) {
    auto into = std::make_shared<Completions>();
    const auto id = engine_->add(request, [this, into](OutputDelta& delta) {
      auto& tokens = (*into)[delta.sequence];
      tokens.insert(tokens.end(), delta.token_ids.begin(), delta.token_ids.end());
      if (!delta.logprobs.empty()) last_logprobs_ = delta.logprobs.back().top_logprobs;
    });
    MR_CHECK(id.is_ok(), id.status().message());
    completions_[*id] = into;
    return *id;
  }
  const Completions& completions(RequestId id) { return *completions_.at(id); }
  void run() {
    while (engine_->step()) {
    }
  }
  const auto& last_logprobs() const { return last_logprobs_; }
  Completions complete(const GenerationRequest& request) {
    const RequestId id = add(request);
    run();
    return completions(id);
  }

 private:
  std::unique_ptr<LoadedModel> model_;
  std::unique_ptr<CpuExecutor> executor_;
  std::unique_ptr<Engine> engine_;
  std::map<RequestId, std::shared_ptr<Completions>> completions_;
  std::vector<std::pair<int32_t, float>> last_logprobs_;
};

EngineOptions small_steps(int64_t chunk, int64_t kv_bytes = int64_t{32} << 20) {
  EngineOptions options;
  options.kv_bytes = kv_bytes;
  options.max_context = 256;
  options.max_running_sequences = 4;
  options.prefill_chunk_max = chunk;
  options.step_tokens_max = std::max<int64_t>(4, chunk + 5);
  return options;
}

std::vector<GenerationRequest> requests_of(uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<GenerationRequest> requests;
  for (int64_t length : {1, 31, 32, 33, 64, 90}) {
    GenerationRequest request;
    for (int64_t i = 0; i < length; ++i) request.prompt_tokens.push_back(static_cast<int32_t>(random() % 500));
    request.max_tokens = 40;
    request.seed = random();
    request.ignore_eos = true;
    request.sampling.temperature = random() % 2 == 0 ? 0.0f : 1.0f;
    requests.push_back(std::move(request));
  }
  return requests;
}

// Each by itself, in steps as large as its prompt, nothing kept.
std::vector<Completions> judged(const std::string& model, const std::vector<GenerationRequest>& requests) {
  EngineOptions options = small_steps(256);
  options.prefix_cache = false;
  StateEngine alone(model, options);
  std::vector<Completions> completions;
  for (const GenerationRequest& request : requests) completions.push_back(alone.complete(request));
  return completions;
}

TEST(StateEngine, TokensDoNotDependOnChunksAndCompany) {
  for (const char* model : kModels) {
    const auto requests = requests_of(1);
    const auto want = judged(model, requests);
    for (int64_t chunk : {1, 7, 32, 33}) {
      SCOPED_TRACE(fmt::format("{} chunk {}", model, chunk));
      StateEngine together(model, small_steps(chunk));
      std::vector<RequestId> ids;
      for (const auto& request : requests) ids.push_back(together.add(request));
      together.run();
      for (std::size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(together.completions(ids[i]), want[i]) << "request " << i;
    }
  }
}

TEST(StateEngine, PreemptedSequencesGetTheSameTokens) {
  for (const char* model : kModels) {
    SCOPED_TRACE(model);
    // Of one length, so that all go on to their next block in one step.
    std::vector<GenerationRequest> requests;
    for (uint32_t i = 0; i < 4; ++i) requests.push_back(requests_of(i + 7)[1]);
    for (auto& request : requests) request.max_tokens = 70;
    const auto want = judged(model, requests);
    int64_t block_bytes = 0;
    const StateEngine roomy(model, small_steps(8));
    for (const KvGroupSpec& group : roomy.info().kv_groups) block_bytes += group.block_bytes;
    StateEngine scarce(model, small_steps(8, 4 * block_bytes));
    std::vector<RequestId> ids;
    for (const auto& request : requests) ids.push_back(scarce.add(request));
    scarce.run();
    for (std::size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(scarce.completions(ids[i]), want[i]) << "request " << i;
    EXPECT_GT(scarce.engine().metrics().num_preemptions, 0);
    for (const auto& group : scarce.engine().metrics().kv_groups) EXPECT_EQ(group.num_used_blocks, 0);
  }
}

TEST(StateEngine, CachedPrefixesAndSiblingsGetTheSameTokens) {
  for (const char* model : kModels) {
    SCOPED_TRACE(model);
    GenerationRequest request = requests_of(3)[5];
    request.n = 3;
    request.sampling.temperature = 1.0f;
    GenerationRequest branch = request;  // shares 64 tokens
    branch.n = 1;
    branch.prompt_tokens.resize(70);
    branch.prompt_tokens[68] = (branch.prompt_tokens[68] + 1) % 500;
    const auto want = judged(model, {request, branch});
    StateEngine caching(model, small_steps(33));
    EXPECT_EQ(caching.complete(request), want[0]);
    const int64_t before = caching.engine().metrics().prefix_cache_hits;
    EXPECT_EQ(caching.complete(request), want[0]);
    EXPECT_EQ(caching.engine().metrics().prefix_cache_hits - before, 64);
    EXPECT_EQ(caching.complete(branch), want[1]);
    EXPECT_EQ(caching.engine().metrics().prefix_cache_hits - before, 128);
  }
}

// Beams that part copy a state, and those of one parent begin from it; the reference computes every hypothesis anew, as a prompt.
TEST(StateEngine, BeamsAreThoseOfHypothesesComputedAnew) {
  for (const char* model : {"lfm2", "mamba", "mamba2"}) {
    SCOPED_TRACE(model);
    GenerationRequest request = requests_of(11)[1];  // 31 tokens: the beams' states cross a block's border
    request.n = 3;
    request.max_tokens = 36;
    request.sampling = {};
    request.sampling.temperature = 0;
    request.beams.emplace();
    EngineOptions options = small_steps(64);
    options.prefix_cache = false;
    StateEngine anew(model, options, GemmPath::kExact);
    BeamSearch search({.width = 3, .max_tokens = 36});
    while (!search.is_done()) {
      std::vector<std::vector<std::pair<int32_t, float>>> candidates;
      for (const BeamSearch::Beam& beam : search.running()) {
        GenerationRequest hypothesis;
        hypothesis.prompt_tokens = request.prompt_tokens;
        hypothesis.prompt_tokens.insert(hypothesis.prompt_tokens.end(), beam.tokens.begin(), beam.tokens.end());
        hypothesis.max_tokens = 1;
        hypothesis.ignore_eos = true;
        hypothesis.sampling.temperature = 0;
        hypothesis.sampling.num_logprobs = static_cast<int32_t>(search.num_candidates());
        anew.complete(hypothesis);
        candidates.push_back(anew.last_logprobs());
      }
      search.advance(candidates);
    }
    Completions want;
    for (const BeamSearch::Beam& beam : search.finished()) want[static_cast<int32_t>(want.size())] = beam.tokens;
    ASSERT_EQ(want.size(), 3u);
    for (const bool prefix_cache : {true, false}) {
      options.prefix_cache = prefix_cache;
      StateEngine beams(model, options, GemmPath::kExact);
      EXPECT_EQ(beams.complete(request), want);
      EXPECT_EQ(beams.complete(request), want);
      for (const auto& group : beams.engine().metrics().kv_groups) EXPECT_EQ(group.num_used_blocks, 0);
    }
  }
}

TEST(StateEngine, CancelledNeighboursLeaveNoMark) {
  for (const char* model : kModels) {
    SCOPED_TRACE(model);
    const auto requests = requests_of(5);
    const auto want = judged(model, requests);
    StateEngine together(model, small_steps(16));
    std::vector<RequestId> ids;
    for (const auto& request : requests) {
      const RequestId cancelled = together.add(requests[4]);
      ids.push_back(together.add(request));
      together.engine().step();
      together.engine().cancel(cancelled);
    }
    together.run();
    for (std::size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(together.completions(ids[i]), want[i]) << "request " << i;
    for (const auto& group : together.engine().metrics().kv_groups) EXPECT_EQ(group.num_used_blocks, 0);
  }
}

// A sequence that decodes holds one state, not one for each block of its context.
TEST(StateEngine, OneStateIsHeldForASequence) {
  EngineOptions options = small_steps(64);
  options.prefix_cache = false;
  StateEngine state("mamba", options);
  GenerationRequest request = requests_of(2)[5];
  request.max_tokens = 100;
  state.add(request);
  for (int steps = 0; steps < 80; ++steps) {
    ASSERT_TRUE(state.engine().step());
    ASSERT_LE(state.engine().metrics().kv_groups[0].num_used_blocks, 3) << "step " << steps;
    if (steps > 4) {
      ASSERT_EQ(state.engine().metrics().kv_groups[0].num_used_blocks, 1) << "step " << steps;
    }
  }
}

TEST(StateEngine, DraftsAreRefused) {
  auto model = LoadedModel::load((source_dir() / "tests/golden/models/lfm2").string(), {.num_threads = 1});
  ASSERT_TRUE(model.is_ok()) << model.status().message();
  auto executor = (*model)->make_executor(GemmPath::kFast, KvDType::kBf16, 64);
  ASSERT_TRUE(executor.is_ok());
  EngineOptions options = small_steps(32);
  options.speculation.method = SpeculationMethod::kNgram;
  const auto engine = Engine::create(**executor, nullptr, options);
  ASSERT_FALSE(engine.is_ok());
  EXPECT_NE(engine.status().message().find("speculation by ngram: this network keeps a state"), std::string::npos)
      << engine.status().message();
}

}  // namespace
}  // namespace millrace
