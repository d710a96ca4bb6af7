#include <gtest/gtest.h>

#include <filesystem>

#include "millrace/base/mapped_file.h"
#include "millrace/base/test_data.h"
#include "millrace/engine/engine_fixture.h"
#include "millrace/engine/loaded_model.h"

// What a request learns about its prompt's tokens: the same numbers, bit for bit, whatever the chunks, the company, the prefix cache and
// the preemptions.
namespace millrace {
namespace {

// The judge: the network without blocks, batches or an engine.
std::vector<TokenLogprob> reference_scores(const FakeNetwork& network, const std::vector<int32_t>& prompt, int32_t num_logprobs) {
  std::vector<std::vector<uint64_t>> kv(network.windows().size());
  std::vector<float> logits(static_cast<std::size_t>(network.vocab_size()));
  SamplingScratch scratch;
  SamplingParams params;
  params.num_logprobs = num_logprobs;
  std::vector<TokenLogprob> scores;
  for (std::size_t p = 0; p + 1 < prompt.size(); ++p) {
    const uint64_t hidden = network.row(prompt[p], static_cast<int64_t>(p), /*rope_long=*/false, /*of_prompt=*/true,
                                        [&](std::size_t g, int64_t position) { return kv[g][static_cast<std::size_t>(position)]; });
    for (std::size_t g = 0; g < kv.size(); ++g) kv[g].push_back(FakeNetwork::mix(hidden, g));
    network.logits(hidden, logits);
    SamplingInput input;
    input.params = &params;
    input.given = prompt[p + 1];
    SampledToken token;
    sample(logits, input, scratch, token);
    scores.push_back({token.id, token.logprob, token.top_logprobs, token.rank});
  }
  return scores;
}

// An engine whose requests keep what they are told of their prompts.
struct ScoringEngine : TestEngine {
  using TestEngine::TestEngine;

  struct Scores {
    std::vector<TokenLogprob> logprobs;
    int num_deltas_with = 0;
  };
  std::map<RequestId, Scores> scores;

  RequestId add_scored(GenerationRequest request) {
    auto id = std::make_shared<RequestId>(0);
    auto added = engine->add(std::move(request), [this, id](OutputDelta& delta) {
      record(logs[*id], delta);
      if (delta.prompt_logprobs.empty()) return;
      EXPECT_EQ(delta.sequence, 0);
      ++scores[*id].num_deltas_with;
      scores[*id].logprobs = std::move(delta.prompt_logprobs);
    });
    MR_CHECK(added.is_ok(), added.status().message());
    return *id = *added;
  }

  void expect_scores(RequestId id, const FakeNetwork& network, const GenerationRequest& request) {
    ASSERT_TRUE(logs[id].finished);
    const std::vector<TokenLogprob> expected = reference_scores(network, request.prompt_tokens, request.num_prompt_logprobs);
    EXPECT_EQ(scores[id].num_deltas_with, expected.empty() ? 0 : 1);
    ASSERT_EQ(scores[id].logprobs.size(), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const TokenLogprob& got = scores[id].logprobs[i];
      EXPECT_EQ(got.token_id, request.prompt_tokens[i + 1]);
      EXPECT_EQ(got.logprob, expected[i].logprob) << "token " << i + 1;
      EXPECT_EQ(got.rank, expected[i].rank);
      EXPECT_EQ(got.top_logprobs, expected[i].top_logprobs);
    }
  }
};

TEST(PromptLogprobs, AreTheReferencesInAnyChunksAndAnyCompany) {
  const std::vector<std::vector<std::optional<int64_t>>> groupings = {{std::nullopt}, {std::nullopt, 40}, {17}, {}};
  for (const auto& windows : groupings) {
    const FakeNetwork network(windows);
    for (const int64_t chunk : {1, 7, 50, 256}) {
      std::mt19937 random(static_cast<uint32_t>(chunk));
      EngineOptions options;
      options.max_running_sequences = 6;
      options.step_tokens_max = std::max<int64_t>(8, chunk);
      options.prefill_chunk_max = chunk;
      options.kv_bytes = fake_kv_bytes(24 * static_cast<int64_t>(std::max<std::size_t>(1, windows.size())));  // preempts
      options.max_context = 512;
      ScoringEngine test(network, options);
      std::vector<std::pair<RequestId, GenerationRequest>> requests;
      const std::vector<int32_t> shared = random_tokens(random, 300);
      for (int i = 0; i < 24; ++i) {
        GenerationRequest request;
        const auto length = static_cast<std::ptrdiff_t>(i == 0 ? 1 : 1 + random() % 300);
        request.prompt_tokens.assign(shared.begin(), shared.begin() + length);  // finds what others left in the cache
        if (random() % 2 == 0) request.prompt_tokens.push_back(static_cast<int32_t>(random() % 61));
        request.num_prompt_logprobs = static_cast<int32_t>(random() % 6) - 1;
        request.max_tokens = static_cast<int64_t>(random() % 40);
        request.n = random() % 4 == 0 ? 2 : 1;
        request.seed = random();
        requests.emplace_back(request.num_prompt_logprobs < 0 ? test.add(request) : test.add_scored(request), request);
        for (uint32_t steps = random() % 4; steps > 0; --steps) test.engine->step();
      }
      test.run();
      for (const auto& [id, request] : requests) {
        SCOPED_TRACE(testing::Message() << "chunk " << chunk << ", request " << id << ", " << windows.size() << " groups");
        if (request.num_prompt_logprobs >= 0) test.expect_scores(id, network, request);
        for (const auto& [index, sequence] : test.logs[id].sequences) {
          EXPECT_EQ(sequence.reason, FinishReason::kLength);
          EXPECT_EQ(sequence.tokens,
                    reference_completion(network, request.prompt_tokens, request.sampling, request.seed, index, *request.max_tokens));
        }
        EXPECT_EQ(static_cast<int32_t>(test.logs[id].sequences.size()), request.n);
      }
      EXPECT_EQ(test.num_used_blocks(), 0);
      EXPECT_LE(test.executor.max_outputs_seen(), 64 + 6) << "the memory of logits is bounded";
    }
  }
}

TEST(PromptLogprobs, ComputeWhatTheCacheHas) {
  const FakeNetwork network({std::nullopt});
  ScoringEngine test(network);
  std::mt19937 random(1);
  GenerationRequest request;
  request.prompt_tokens = random_tokens(random, 200);
  request.max_tokens = 1;
  test.add(request);
  test.run();
  const RequestId plain = test.add(request);
  test.run();
  EXPECT_EQ(test.logs[plain].usage.cached_tokens, 192);
  request.num_prompt_logprobs = 2;
  const RequestId scored = test.add_scored(request);
  test.run();
  EXPECT_EQ(test.logs[scored].usage.cached_tokens, 0);
  test.expect_scores(scored, network, request);
  // What it computed serves others.
  request.num_prompt_logprobs = -1;
  const RequestId after = test.add(request);
  test.run();
  EXPECT_EQ(test.logs[after].usage.cached_tokens, 192);
}

TEST(PromptLogprobs, ARequestForThePromptAloneDrawsNothing) {
  const FakeNetwork network({std::nullopt});
  ScoringEngine test(network);
  GenerationRequest request;
  request.prompt_tokens = {1, 2, 3};
  request.max_tokens = 0;
  request.num_prompt_logprobs = 1;
  request.n = 2;
  const RequestId id = test.add_scored(request);
  test.run();
  test.expect_scores(id, network, request);
  for (const int32_t sequence : {0, 1}) {
    EXPECT_TRUE(test.logs[id].sequences[sequence].tokens.empty());
    EXPECT_EQ(test.logs[id].sequences[sequence].reason, FinishReason::kLength);
  }
  EXPECT_EQ(test.logs[id].usage.prompt_tokens, 3);
  EXPECT_EQ(test.logs[id].usage.completion_tokens, 0);
}

// The whole way through a real network: what the reference implementation computed for the same tokens.
TEST(PromptLogprobs, AreThoseOfTheGoldens) {
  for (const char* name : {"llama", "gemma3_text"}) {
    const std::filesystem::path directory = source_dir() / "tests/golden/models" / name;
    auto model = LoadedModel::load(directory.string(), {.num_threads = 2});
    ASSERT_TRUE(model.is_ok()) << model.status().message();
    auto executor = (*model)->make_executor(GemmPath::kExact, KvDType::kF32, 32);
    ASSERT_TRUE(executor.is_ok()) << executor.status().message();
    EngineOptions options;
    options.kv_bytes = int64_t{8} << 20;
    options.max_running_sequences = 4;
    options.step_tokens_max = 32;
    auto engine = Engine::create(**executor, nullptr, options);
    ASSERT_TRUE(engine.is_ok()) << engine.status().message();
    const auto golden = parse_json(*read_text_file((directory / "golden.json").string()));
    ASSERT_TRUE(golden.is_ok()) << golden.status().message();
    std::size_t num_scored = 0;
    for (const json::value& prompt : golden->at("prompts").as_array()) {
      GenerationRequest request;
      for (const json::value& id : prompt.at("ids").as_array()) request.prompt_tokens.push_back(static_cast<int32_t>(id.as_int64()));
      request.num_prompt_logprobs = 0;
      request.max_tokens = 0;
      std::vector<TokenLogprob> got;
      ASSERT_TRUE((*engine)->add(request, [&](OutputDelta& delta) { got = std::move(delta.prompt_logprobs); }).is_ok());
      while ((*engine)->step()) {
      }
      const json::array& expected = prompt.at("prompt_logprobs").as_array();
      ASSERT_EQ(got.size(), expected.size());
      for (std::size_t i = 0; i < got.size(); ++i)
        EXPECT_NEAR(got[i].logprob, expected[i].to_number<double>(), 2e-3) << name << ", token " << i + 1;
      num_scored += got.size();
    }
    EXPECT_GT(num_scored, 50u);
  }
}

TEST(PromptLogprobs, NumbersThatAreNotFiniteFailTheRequest) {
  const FakeNetwork network({std::nullopt});
  ScoringEngine test(network);
  test.executor.poison_token = 60;
  GenerationRequest request;
  request.prompt_tokens = {1, 2, 60, 3, 4};
  request.max_tokens = 3;
  const RequestId plain = test.add(request);
  request.num_prompt_logprobs = 0;
  const RequestId scored = test.add_scored(request);
  test.run();
  EXPECT_EQ(test.logs[plain].sequences[0].reason, FinishReason::kLength);
  EXPECT_EQ(test.logs[scored].sequences[0].reason, FinishReason::kError);
  EXPECT_EQ(test.logs[scored].sequences[0].error.message(), "the model's numbers are not finite at prompt token 2");
  EXPECT_EQ(test.num_used_blocks(), 0);
}

}  // namespace
}  // namespace millrace
