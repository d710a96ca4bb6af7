#include "millrace/engine/engine.h"

#include <gtest/gtest.h>

#include "millrace/engine/engine_fixture.h"

// Results do not depend on company (docs/design.md D5): whatever the batch, the chunks, the cache and the preemptions, every sequence
// gets the tokens of the judge, which knows none of these.
namespace millrace {
namespace {

const std::vector<std::vector<std::optional<int64_t>>> kGroupings = {{std::nullopt}, {std::nullopt, 40}, {17}, {64, std::nullopt, 5}, {}};

GenerationRequest random_request(std::mt19937& random, std::size_t max_prompt, int64_t max_tokens) {
  GenerationRequest request;
  request.prompt_tokens = random_tokens(random, 1 + random() % max_prompt);
  request.max_tokens = 1 + static_cast<int64_t>(random()) % max_tokens;
  request.seed = random();
  request.sampling.temperature = random() % 2 == 0 ? 0.0f : 1.0f;
  if (random() % 3 == 0) request.sampling.top_k = 5;
  if (random() % 3 == 0) request.sampling.repetition_penalty = 1.3f;
  if (random() % 4 == 0) request.n = 1 + static_cast<int32_t>(random() % 3);
  switch (request.seed % 8) {
    case 0: request.sampling.mirostat = 2; break;
    case 1: request.sampling.typical_p = 0.9f, request.sampling.top_n_sigma = 1.5f; break;
    case 2: request.sampling.xtc_probability = 0.5f, request.sampling.xtc_threshold = 0.03f; break;
    case 3: request.sampling.dry_multiplier = 2, request.sampling.dry_allowed_length = 1; break;
    case 4: request.sampling.bad_words = {{7}, {8, 9}, {request.prompt_tokens[0], 3}}; break;
    default: break;
  }
  return request;
}

void expect_reference(const FakeNetwork& network, const GenerationRequest& request, const RequestLog& log, bool rope_long = false) {
  ASSERT_TRUE(log.finished);
  ASSERT_EQ(static_cast<int32_t>(log.sequences.size()), request.n);
  for (const auto& [index, sequence] : log.sequences) {
    EXPECT_EQ(sequence.reason, FinishReason::kLength);
    EXPECT_EQ(sequence.tokens,
              reference_completion(network, request.prompt_tokens, request.sampling, request.seed, index, *request.max_tokens, rope_long));
  }
  EXPECT_EQ(log.usage.prompt_tokens, static_cast<int64_t>(request.prompt_tokens.size()));
  EXPECT_EQ(log.usage.completion_tokens, *request.max_tokens * request.n);
}

TEST(Engine, TokensEqualTheReferenceAloneAndInAnyCompany) {
  for (const auto& windows : kGroupings) {
    const FakeNetwork network(windows);
    for (const int strangers : {0, 1, 5, 32}) {
      std::mt19937 random(static_cast<uint32_t>(strangers) + 1);
      TestEngine test(network);
      std::vector<std::pair<RequestId, GenerationRequest>> requests;
      for (int i = 0; i <= strangers; ++i) {
        GenerationRequest request = random_request(random, 150, 40);
        requests.emplace_back(test.add(request), request);
        for (uint32_t steps = random() % 4; steps > 0; --steps) test.engine->step();  // they arrive at different times
      }
      test.run();
      for (const auto& [id, request] : requests) expect_reference(network, request, test.logs[id]);
      EXPECT_EQ(test.num_used_blocks(), 0);
    }
  }
}

TEST(Engine, TokensDoNotDependOnTheChunks) {
  for (const auto& windows : kGroupings) {
    const FakeNetwork network(windows);
    for (const int64_t chunk : {1, 7, 31, 32, 33, 100}) {
      std::mt19937 random(7);
      EngineOptions options;
      options.max_running_sequences = 4;
      options.prefill_chunk_max = chunk;
      options.step_tokens_max = std::max<int64_t>(4, chunk + 3);
      TestEngine test(network, options);
      std::vector<std::pair<RequestId, GenerationRequest>> requests;
      for (int i = 0; i < 6; ++i) {
        GenerationRequest request = random_request(random, 200, 20);
        requests.emplace_back(test.add(request), request);
      }
      test.run();
      EXPECT_LE(test.executor.max_rows_seen(), options.step_tokens_max);
      for (const auto& [id, request] : requests) expect_reference(network, request, test.logs[id]);
    }
  }
}

TEST(Engine, TokensSurvivePreemption) {
  for (const auto& windows : kGroupings) {
    if (windows.empty()) continue;  // no KV, nothing to run out of
    const FakeNetwork network(windows);
    std::mt19937 random(9);
    EngineOptions options;
    options.step_tokens_max = 64;
    options.max_running_sequences = 16;
    options.kv_bytes = fake_kv_bytes(static_cast<int64_t>(windows.size()) * 12);
    TestEngine test(network, options, nullptr, 300);
    std::vector<std::pair<RequestId, GenerationRequest>> requests;
    for (int i = 0; i < 24; ++i) {
      GenerationRequest request = random_request(random, 60, 120);
      requests.emplace_back(test.add(request), request);
    }
    test.run();
    const bool has_full_group = std::count(windows.begin(), windows.end(), std::nullopt) > 0;
    if (has_full_group) {
      EXPECT_GT(test.engine->metrics().num_preemptions, 0);
    }
    for (const auto& [id, request] : requests) expect_reference(network, request, test.logs[id]);
    EXPECT_EQ(test.num_used_blocks(), 0);
  }
}

TEST(Engine, TokensDoNotDependOnCacheHits) {
  for (const auto& windows : kGroupings) {
    if (windows.empty()) continue;
    const FakeNetwork network(windows);
    std::mt19937 random(13);
    const std::vector<int32_t> prefix = random_tokens(random, 200);
    EngineOptions options;
    options.kv_bytes = fake_kv_bytes(static_cast<int64_t>(windows.size()) * 40);
    TestEngine test(network, options);
    for (int i = 0; i < 40; ++i) {
      GenerationRequest request = random_request(random, 100, 20);
      // Prompts that agree up to anywhere, block borders included.
      std::vector<int32_t> prompt(prefix.begin(), prefix.begin() + random() % 201);
      if (random() % 3 != 0 || prompt.empty()) prompt.insert(prompt.end(), request.prompt_tokens.begin(), request.prompt_tokens.end());
      request.prompt_tokens = prompt;
      const RequestId id = test.add(request);
      if (random() % 2 == 0) test.run();
      test.run();
      expect_reference(network, request, test.logs[id]);
      EXPECT_LT(test.logs[id].usage.cached_tokens, static_cast<int64_t>(prompt.size()));
    }
    EXPECT_GT(test.engine->metrics().prefix_cache_hits, 0);
  }
}

TEST(Engine, ARepeatedPromptIsCachedUpToItsLastToken) {
  for (const auto& windows : {std::vector<std::optional<int64_t>>{std::nullopt}, {std::nullopt, 40}, {17}}) {
    const FakeNetwork network(windows);
    std::mt19937 random(1);
    for (const std::size_t length : {1u, 31u, 32u, 33u, 64u, 65u, 320u}) {
      TestEngine test(network);
      GenerationRequest request;
      request.prompt_tokens = random_tokens(random, length);
      request.max_tokens = 3;
      const RequestId first = test.add(request);
      test.run();
      const RequestId second = test.add(request);
      test.run();
      EXPECT_EQ(test.logs[first].usage.cached_tokens, 0);
      EXPECT_EQ(test.logs[second].usage.cached_tokens, static_cast<int64_t>((length - 1) / 32 * 32));
      EXPECT_EQ(test.logs[first].sequences[0].tokens, test.logs[second].sequences[0].tokens);
    }
  }
}

TEST(Engine, CachedPrefixesAreSharedOnlyUnderOneSalt) {
  const FakeNetwork network({std::nullopt});
  TestEngine test(network);
  GenerationRequest request;
  std::mt19937 random(2);
  request.prompt_tokens = random_tokens(random, 100);
  request.max_tokens = 2;
  const auto cached_tokens_with = [&](const std::string& salt) {
    request.cache_salt = salt;
    const RequestId id = test.add(request);
    test.run();
    return test.logs[id].usage.cached_tokens;
  };
  EXPECT_EQ(cached_tokens_with("tenant a"), 0);
  EXPECT_EQ(cached_tokens_with("tenant b"), 0);
  EXPECT_EQ(cached_tokens_with("tenant a"), 96);
}

TEST(Engine, SiblingsShareThePromptEvenWithoutACache) {
  const FakeNetwork network({std::nullopt});
  for (const bool prefix_cache : {true, false}) {
    EngineOptions options;
    options.prefix_cache = prefix_cache;
    TestEngine test(network, options);
    GenerationRequest request;
    std::mt19937 random(2);
    request.prompt_tokens = random_tokens(random, 330);
    request.max_tokens = 5;
    request.n = 4;
    request.seed = 99;
    const RequestId id = test.add(request);
    test.run();
    expect_reference(network, request, test.logs[id]);
    EXPECT_NE(test.logs[id].sequences[0].tokens, test.logs[id].sequences[1].tokens);
    // 330 rows once and the last partial block of 10 rows for each sibling; 16 decode rows are not prefill.
    EXPECT_EQ(test.engine->metrics().prefill_tokens_computed, 330 + 3 * 10);
    const RequestId again = test.add(request);
    test.run();
    EXPECT_EQ(test.logs[again].usage.cached_tokens, prefix_cache ? 320 : 0);
    expect_reference(network, request, test.logs[again]);
  }
}

TEST(Engine, TheRopeVariantFollowsFromPromptAndMaxTokens) {
  const FakeNetwork network({std::nullopt});
  TestEngine test(network, {}, nullptr, 4096, /*rope_short_length=*/100);
  std::mt19937 random(4);
  GenerationRequest request;
  request.prompt_tokens = random_tokens(random, 70);
  request.sampling.temperature = 0;
  for (const int64_t max_tokens : {30, 31}) {  // 100 tokens, 101 tokens
    request.max_tokens = max_tokens;
    const RequestId id = test.add(request);
    test.run();
    expect_reference(network, request, test.logs[id], /*rope_long=*/max_tokens == 31);
    EXPECT_EQ(test.logs[id].usage.cached_tokens, 0) << "the other variant's keys are not usable";
  }
}

TEST(Engine, AbsentMaxTokensGoesToTheEndOfTheContext) {
  TestEngine test(FakeNetwork({std::nullopt}), {}, nullptr, 50);
  GenerationRequest request;
  request.prompt_tokens = {1, 2, 3};
  const RequestId id = test.add(request);
  test.run();
  EXPECT_EQ(test.logs[id].sequences[0].tokens.size(), 47u);
  EXPECT_EQ(test.logs[id].sequences[0].reason, FinishReason::kLength);
}

TEST(Engine, StopTokensEndASequenceAndMinTokensForbidsThem) {
  const FakeNetwork network({std::nullopt});
  GenerationRequest request;
  request.prompt_tokens = {5, 6, 7};
  request.seed = 3;
  request.max_tokens = 60;
  const std::vector<int32_t> free_run = reference_completion(network, request.prompt_tokens, request.sampling, 3, 0, 60);
  const int32_t stop = free_run[20];
  const std::size_t first = static_cast<std::size_t>(std::find(free_run.begin(), free_run.end(), stop) - free_run.begin());

  EngineOptions options;
  options.eos_token_ids = {stop, 1'000'000};  // the second does not exist, and does no harm
  TestEngine test(network, options);
  const RequestId by_eos = test.add(request);
  request.ignore_eos = true;
  const RequestId ignoring = test.add(request);
  request.stop_token_ids = {stop};
  const RequestId by_stop_token = test.add(request);
  request.min_tokens = static_cast<int64_t>(first) + 5;
  const RequestId with_minimum = test.add(request);
  test.run();
  const std::vector<int32_t> stopped(free_run.begin(), free_run.begin() + static_cast<std::ptrdiff_t>(first) + 1);
  EXPECT_EQ(test.logs[by_eos].sequences[0].tokens, stopped);
  EXPECT_EQ(test.logs[by_eos].sequences[0].reason, FinishReason::kStop);
  EXPECT_EQ(test.logs[by_stop_token].sequences[0].tokens, stopped);
  EXPECT_EQ(test.logs[ignoring].sequences[0].tokens, free_run);
  const std::vector<int32_t>& longer = test.logs[with_minimum].sequences[0].tokens;
  ASSERT_GE(longer.size(), first + 5);
  EXPECT_EQ(std::count(longer.begin(), longer.begin() + static_cast<std::ptrdiff_t>(first) + 5, stop), 0);
}

TEST(Engine, MasksThatLeaveNoTokenFailTheRequestAndSayWhich) {
  EngineOptions options;
  options.eos_token_ids = {9};
  TestEngine test(FakeNetwork({std::nullopt}), options);
  GenerationRequest request;
  request.prompt_tokens = {1, 2};
  request.max_tokens = 6;
  request.sampling.allowed_token_ids = {9, 10};
  request.sampling.bad_words = {{10, 10}};
  request.min_tokens = 3;
  const RequestId id = test.add(request);
  test.run();
  SequenceLog& sequence = test.logs[id].sequences[0];
  EXPECT_EQ(sequence.tokens, std::vector<int32_t>{10});
  EXPECT_EQ(sequence.reason, FinishReason::kError);
  EXPECT_EQ(sequence.error.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(sequence.error.message(), "no token is allowed at completion token 1: allowed_token_ids, bad_words and min_tokens leave none");
}

TEST(Engine, MirostatIsNotAnInterruptedSequencesLoss) {
  const FakeNetwork network({std::nullopt});
  EngineOptions options;
  options.kv_bytes = fake_kv_bytes(9);  // three sequences of up to 100 tokens want twelve
  TestEngine test(network, options);
  std::vector<std::pair<RequestId, GenerationRequest>> requests;
  for (uint64_t i = 0; i < 3; ++i) {
    GenerationRequest request;
    request.prompt_tokens = {static_cast<int32_t>(i), 5, 6};
    request.max_tokens = 95;
    request.seed = i;
    request.sampling.mirostat = 2;
    request.sampling.mirostat_tau = 3;
    request.sampling.mirostat_eta = 0.5f;
    requests.emplace_back(test.add(request), request);
  }
  test.run();
  EXPECT_GT(test.engine->metrics().num_preemptions, 0);
  for (const auto& [id, request] : requests) expect_reference(network, request, test.logs[id]);
}

TEST(Engine, ARequestWithNonFiniteLogitsFailsAloneAndLeavesNothingBehind) {
  const FakeNetwork network({std::nullopt});
  TestEngine test(network);
  test.executor.poison_token = 60;
  std::mt19937 random(5);
  GenerationRequest good, bad;
  good.prompt_tokens = random_tokens(random, 80, 60);
  good.sampling.logit_bias = {{60, -100.0f}};
  good.max_tokens = 30;
  bad = good;
  bad.prompt_tokens = random_tokens(random, 79, 60);
  bad.prompt_tokens.push_back(60);
  bad.n = 2;
  const RequestId good_id = test.add(good), bad_id = test.add(bad);
  test.run();
  expect_reference(network, good, test.logs[good_id]);
  ASSERT_TRUE(test.logs[bad_id].finished);
  for (const int32_t sequence : {0, 1}) {
    EXPECT_EQ(test.logs[bad_id].sequences[sequence].reason, FinishReason::kError);
    EXPECT_EQ(test.logs[bad_id].sequences[sequence].error.message(), "the model's numbers are not finite at completion token 0");
  }
  EXPECT_EQ(test.num_used_blocks(), 0);
  // The failed request's prefix is not offered to the next.
  test.executor.poison_token.reset();
  const RequestId again = test.add(bad);
  test.run();
  EXPECT_EQ(test.logs[again].usage.cached_tokens, 0);
  expect_reference(network, bad, test.logs[again]);
}

TEST(Engine, LogprobsComeWithTheirTokens) {
  TestEngine test(FakeNetwork({std::nullopt}));
  GenerationRequest request;
  request.prompt_tokens = {1, 2};
  request.max_tokens = 4;
  request.sampling.num_logprobs = 2;
  int num_logprobs = 0;
  ASSERT_TRUE(test.engine
                  ->add(request,
                        [&](OutputDelta& delta) {
                          ASSERT_EQ(delta.logprobs.size(), delta.token_ids.size());
                          for (std::size_t i = 0; i < delta.logprobs.size(); ++i, ++num_logprobs) {
                            EXPECT_EQ(delta.logprobs[i].token_id, delta.token_ids[i]);
                            EXPECT_LT(delta.logprobs[i].logprob, 0);
                            EXPECT_EQ(delta.logprobs[i].top_logprobs.size(), 2u);
                          }
                        })
                  .is_ok());
  test.run();
  EXPECT_EQ(num_logprobs, 4);
}

}  // namespace
}  // namespace millrace
