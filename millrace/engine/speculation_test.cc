#include <gtest/gtest.h>

#include "millrace/engine/byte_tokenizer.h"
#include "millrace/engine/engine_fixture.h"

// Speculation changes nothing but the number of steps (docs/design.md D5): token for token the judge's completion, which decodes one by
// one.
namespace millrace {
namespace {

constexpr int64_t kVocabSize = 5;  // so small that n-grams recur, and a draft is right now and then

constexpr SpeculationMethod kMethods[] = {SpeculationMethod::kNgram, SpeculationMethod::kSuffix};

SpeculationOptions always(SpeculationMethod method = SpeculationMethod::kNgram) {
  return {.method = method, .num_speculative_tokens = 7, .prompt_lookup_min = 1, .adaptive = false};
}

// Tokens are nearly random, so drafts mostly fail early; with a bias towards one token or two, long ones succeed.
GenerationRequest random_request(std::mt19937& random, std::size_t max_prompt, int64_t max_tokens) {
  GenerationRequest request;
  request.prompt_tokens = random_tokens(random, 1 + random() % max_prompt, kVocabSize);
  request.max_tokens = 1 + static_cast<int64_t>(random()) % max_tokens;
  request.seed = random();
  request.sampling.temperature = random() % 2 == 0 ? 0.0f : 1.0f;
  if (random() % 3 == 0) request.sampling.top_k = 3;
  if (random() % 3 == 0) request.sampling.repetition_penalty = 1.3f;
  if (random() % 4 == 0) request.sampling.presence_penalty = 0.7f;
  if (random() % 4 == 0) request.sampling.frequency_penalty = 0.2f;
  if (random() % 4 == 0) request.n = 1 + static_cast<int32_t>(random() % 3);
  if (random() % 2 == 0)
    request.sampling.logit_bias = {{static_cast<int32_t>(random() % kVocabSize), 7.0f},
                                   {static_cast<int32_t>(random() % kVocabSize), 6.0f}};
  switch (request.seed % 8) {
    case 0: request.sampling.mirostat = 2, request.sampling.mirostat_tau = 1; break;  // never drafted for
    case 1: request.sampling.typical_p = 0.9f, request.sampling.top_n_sigma = 1.5f; break;
    case 2: request.sampling.xtc_probability = 0.3f; break;
    case 3: request.sampling.dry_multiplier = 2, request.sampling.dry_allowed_length = 4; break;
    case 4: request.sampling.bad_words = {{1, 2}, {3, 3, 3}}; break;
    default: break;
  }
  return request;
}

void expect_reference(const FakeNetwork& network, const GenerationRequest& request, const RequestLog& log) {
  ASSERT_TRUE(log.finished);
  ASSERT_EQ(static_cast<int32_t>(log.sequences.size()), request.n);
  for (const auto& [index, sequence] : log.sequences) {
    EXPECT_EQ(sequence.reason, FinishReason::kLength);
    EXPECT_EQ(sequence.tokens,
              reference_completion(network, request.prompt_tokens, request.sampling, request.seed, index, *request.max_tokens));
  }
  EXPECT_EQ(log.usage.completion_tokens, *request.max_tokens * request.n);
}

struct Totals {
  int64_t drafted = 0, accepted = 0, preemptions = 0, hits = 0;
  void add(const EngineMetrics& metrics) {
    drafted += metrics.num_draft_tokens, accepted += metrics.num_accepted_tokens, preemptions += metrics.num_preemptions,
        hits += metrics.prefix_cache_hits;
    int64_t by_position = 0;
    for (const int64_t count : metrics.num_accepted_tokens_per_position) by_position += count;
    EXPECT_EQ(by_position, metrics.num_accepted_tokens);
    EXPECT_LE(metrics.num_drafts, metrics.num_draft_tokens);
  }
  void expect_both_kinds() const {
    EXPECT_GT(accepted, drafted / 20);
    EXPECT_GT(drafted - accepted, drafted / 20);
    EXPECT_GT(drafted, 1000);
  }
};

// Company, windows, chunks, little memory and cached prefixes, each with every other.
void check_every_composition(SpeculationMethod method) {
  Totals totals;
  for (const auto& windows :
       std::vector<std::vector<std::optional<int64_t>>>{{std::nullopt}, {std::nullopt, 40}, {17}, {64, std::nullopt, 5}, {}}) {
    const FakeNetwork network(windows, kVocabSize);
    for (const int64_t chunk : {5, 32, 100}) {
      for (const bool short_of_memory : {false, true}) {
        for (const bool prefix_cache : {false, true}) {
          std::mt19937 random(static_cast<uint32_t>(chunk) + (short_of_memory ? 7 : 0));
          EngineOptions options;
          options.speculation = always(method);
          options.speculation.past_output.num_tokens_max = 400;  // less than what is answered
          options.prefix_cache = prefix_cache;
          options.max_running_sequences = 6;
          options.prefill_chunk_max = chunk;
          options.step_tokens_max = std::max<int64_t>(chunk, 14);
          if (short_of_memory) options.kv_bytes = fake_kv_bytes(static_cast<int64_t>(windows.size()) * 13);
          if (short_of_memory && windows.empty()) continue;
          TestEngine test(network, options, nullptr, 400);
          const std::vector<int32_t> prefix = random_tokens(random, 100, kVocabSize);
          std::vector<std::pair<RequestId, GenerationRequest>> requests;
          for (int i = 0; i < 12; ++i) {
            GenerationRequest request = random_request(random, 80, 90);
            if (random() % 2 == 0) request.prompt_tokens.insert(request.prompt_tokens.begin(), prefix.begin(), prefix.end());
            request.client = static_cast<int32_t>(random() % 2);
            if (random() % 4 == 0) request.cache_salt = "salt";
            requests.emplace_back(test.add(request), request);
            for (uint32_t steps = random() % 6; steps > 0; --steps) test.engine->step();
          }
          test.run();
          EXPECT_LE(test.executor.max_rows_seen(), options.step_tokens_max);
          for (const auto& [id, request] : requests) expect_reference(network, request, test.logs[id]);
          EXPECT_EQ(test.num_used_blocks(), 0);
          EXPECT_LE(test.engine->metrics().num_past_output_tokens, 400);
          EXPECT_EQ(test.engine->metrics().num_past_output_tokens > 0, method == SpeculationMethod::kSuffix);
          totals.add(test.engine->metrics());
        }
      }
    }
  }
  totals.expect_both_kinds();
  EXPECT_GT(totals.preemptions, 0);
  EXPECT_GT(totals.hits, 0);
}

TEST(Speculation, TokensEqualTheReferenceInEveryCompositionByNgram) { check_every_composition(SpeculationMethod::kNgram); }
TEST(Speculation, TokensEqualTheReferenceInEveryCompositionBySuffix) { check_every_composition(SpeculationMethod::kSuffix); }

// Blocks that an accepted draft filled are cached under the tokens that they hold: a conversation that goes on finds them.
TEST(Speculation, WhatItLeavesInTheCacheIsRight) {
  const FakeNetwork network({std::nullopt, 40}, kVocabSize);
  EngineOptions options;
  options.speculation = always();
  TestEngine test(network, options);
  std::mt19937 random(5);
  for (int i = 0; i < 20; ++i) {
    GenerationRequest first = random_request(random, 60, 100);
    first.n = 1;
    first.max_tokens = 100;
    const RequestId first_id = test.add(first);
    test.run();
    expect_reference(network, first, test.logs[first_id]);
    GenerationRequest second = first;
    second.prompt_tokens.insert(second.prompt_tokens.end(), test.logs[first_id].sequences[0].tokens.begin(),
                                test.logs[first_id].sequences[0].tokens.end());
    const RequestId second_id = test.add(second);
    test.run();
    expect_reference(network, second, test.logs[second_id]);
  }
}

// The fake network computes a prompt in another way than what was generated, so the conversation above finds only its prompt. Here a
// sequence is preempted and finds its own completion again.
TEST(Speculation, APreemptedSequenceFindsItsAcceptedBlocksAgain) {
  const FakeNetwork network({std::nullopt}, kVocabSize);
  EngineOptions options;
  options.speculation = always();
  options.max_running_sequences = 4;
  options.kv_bytes = fake_kv_bytes(14);
  TestEngine test(network, options, nullptr, 400);
  std::mt19937 random(6);
  std::vector<std::pair<RequestId, GenerationRequest>> requests;
  for (int i = 0; i < 12; ++i) {
    GenerationRequest request = random_request(random, 20, 250);
    request.n = 1;
    request.sampling.logit_bias = {{1, 9.0f}};
    requests.emplace_back(test.add(request), request);
  }
  test.run();
  for (const auto& [id, request] : requests) expect_reference(network, request, test.logs[id]);
  EXPECT_GT(test.engine->metrics().num_preemptions, 0);
}

TEST(Speculation, AcceptedDraftsSaveSteps) {
  const FakeNetwork network({std::nullopt}, kVocabSize);
  int64_t steps[2];
  for (const bool on : {false, true}) {
    EngineOptions options;
    options.speculation = always();
    if (!on) options.speculation.method = SpeculationMethod::kOff;
    TestEngine test(network, options);
    GenerationRequest request;
    request.prompt_tokens = {1, 2, 3};
    request.sampling.logit_bias = {{2, 50.0f}};
    request.max_tokens = 80;
    const RequestId id = test.add(request);
    test.run();
    EXPECT_EQ(test.logs[id].sequences[0].tokens, std::vector<int32_t>(80, 2));
    steps[on ? 1 : 0] = test.executor.num_steps();
  }
  EXPECT_EQ(steps[0], 80);
  EXPECT_LE(steps[1], 14);
}

// Stop tokens, stop strings, min_tokens and max_tokens inside of an accepted run end it where they would have ended it.
TEST(Speculation, EndsWhereItWouldHaveEnded) {
  std::map<FinishReason, int> reasons;
  int num_drafted = 0;
  for (uint32_t seed = 0; seed < 120; ++seed) {
    std::mt19937 random(seed);
    const FakeNetwork network({std::nullopt}, 'z' + 1);
    const Tokenizer tokenizer = make_byte_tokenizer();
    GenerationRequest request;
    request.prompt_tokens = {'a', 'b', 'a', 'b'};
    // Letters a, b and c only, mostly in runs.
    for (const char letter : {'a', 'b', 'c'})
      request.sampling.logit_bias.emplace_back(letter, 40.0f + 4.0f * static_cast<float>(random() % 3));
    request.seed = seed;
    request.max_tokens = 1 + static_cast<int64_t>(random() % 60);
    if (random() % 2 == 0) request.stop = {random() % 2 == 0 ? "aaca" : "bab"};
    if (random() % 3 == 0) request.stop_token_ids = {'c'};
    if (random() % 3 == 0) request.min_tokens = static_cast<int64_t>(random()) % (*request.max_tokens + 1);
    if (random() % 3 == 0) request.include_stop_str_in_output = true;
    request.sampling.num_logprobs = 1;
    std::vector<std::string> texts;
    std::vector<std::vector<int32_t>> tokens;
    std::vector<std::vector<float>> logprobs(2);
    std::vector<std::optional<FinishReason>> finished;
    for (const bool on : {false, true}) {
      EngineOptions options;
      options.speculation = always();
      if (!on) options.speculation.method = SpeculationMethod::kOff;
      TestEngine test(network, options, &tokenizer);
      SequenceLog log;
      ASSERT_TRUE(test.engine
                      ->add(request,
                            [&](OutputDelta& delta) {
                              ASSERT_EQ(delta.logprobs.size(), delta.token_ids.size());
                              for (const TokenLogprob& token : delta.logprobs) logprobs[on ? 1 : 0].push_back(token.logprob);
                              log.tokens.insert(log.tokens.end(), delta.token_ids.begin(), delta.token_ids.end());
                              log.text += delta.text;
                              log.reason = delta.finish_reason;
                              EXPECT_EQ(delta.usage.completion_tokens, static_cast<int64_t>(log.tokens.size()));
                            })
                      .is_ok());
      test.run();
      texts.push_back(log.text);
      tokens.push_back(log.tokens);
      finished.push_back(log.reason);
      num_drafted += static_cast<int>(test.engine->metrics().num_accepted_tokens);
      EXPECT_EQ(test.engine->metrics().generation_tokens, static_cast<int64_t>(log.tokens.size()));
      EXPECT_EQ(test.num_used_blocks(), 0);
    }
    EXPECT_EQ(texts[0], texts[1]) << "seed " << seed;
    EXPECT_EQ(tokens[0], tokens[1]) << "seed " << seed;
    EXPECT_EQ(logprobs[0], logprobs[1]) << "seed " << seed;
    EXPECT_EQ(finished[0], finished[1]) << "seed " << seed;
    ++reasons[*finished[1]];
  }
  EXPECT_GT(reasons[FinishReason::kStop], 20);
  EXPECT_GT(reasons[FinishReason::kLength], 20);
  EXPECT_GT(num_drafted, 100);
}

TEST(Speculation, CancelFreesEverythingAndDisturbsNobody) {
  const FakeNetwork network({std::nullopt, 40}, kVocabSize);
  std::mt19937 random(8);
  GenerationRequest stranger = random_request(random, 50, 60);
  stranger.n = 1;
  for (int steps = 0; steps < 30; ++steps) {
    EngineOptions options;
    options.speculation = always();
    TestEngine test(network, options);
    const RequestId stranger_id = test.add(stranger);
    GenerationRequest target = random_request(random, 50, 80);
    const RequestId id = test.add(target);
    for (int i = 0; i < steps; ++i) test.engine->step();
    test.engine->cancel(id);
    test.engine->step();
    EXPECT_TRUE(test.logs[id].finished);
    test.run();
    expect_reference(network, stranger, test.logs[stranger_id]);
    EXPECT_EQ(test.num_used_blocks(), 0);
  }
}

// A draft token gives logits that are not finite: wrong ones cost nothing, and the right one fails the request where it would have failed.
TEST(Speculation, NonFiniteLogitsFailTheRequestWhereTheyWouldHave) {
  const FakeNetwork network({std::nullopt}, kVocabSize);
  int num_failed = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    std::vector<std::map<int32_t, SequenceLog>> logs;
    for (const bool on : {false, true}) {
      EngineOptions options;
      options.speculation = always();
      if (!on) options.speculation.method = SpeculationMethod::kOff;
      TestEngine test(network, options);
      test.executor.poison_token = 4;
      GenerationRequest request;
      request.prompt_tokens = {0, 1, 2, 3, 4, 0, 1, 2, 3};
      request.seed = seed;
      request.n = 2;
      request.max_tokens = 25;
      request.sampling.logit_bias = {{1, 3.0f}, {4, -2.0f}};
      const RequestId id = test.add(request);
      test.run();
      EXPECT_EQ(test.num_used_blocks(), 0);
      logs.push_back(test.logs[id].sequences);
    }
    // A sibling's progress at the moment of the failure depends on how many tokens its steps gave; the failing one's does not.
    for (const int32_t index : {0, 1}) {
      const std::vector<int32_t>&plain = logs[0][index].tokens, &drafted = logs[1][index].tokens;
      const std::size_t common = std::min(plain.size(), drafted.size());
      EXPECT_TRUE(std::equal(plain.begin(), plain.begin() + static_cast<std::ptrdiff_t>(common), drafted.begin())) << "seed " << seed;
    }
    const auto failed = [](std::map<int32_t, SequenceLog>& of) {
      return of[0].reason == FinishReason::kError || of[1].reason == FinishReason::kError;
    };
    EXPECT_EQ(failed(logs[0]), failed(logs[1])) << "seed " << seed;
    num_failed += failed(logs[1]) ? 1 : 0;
  }
  EXPECT_GT(num_failed, 20);
}

// An adaptive engine whose clock says that rows are dear soon stops, and goes on where they are free.
TEST(Speculation, AdaptsToWhatStepsTake) {
  for (const bool rows_are_dear : {false, true}) {
    double seconds = 0;
    EngineOptions options;
    options.speculation = {.method = SpeculationMethod::kNgram, .num_speculative_tokens = 8};
    // Asked before and after a step: time passes by its rows.
    int64_t seen = 0;
    TestEngine* engine = nullptr;
    options.clock = [&] {
      if (engine != nullptr && engine->executor.num_steps() != seen) {
        seen = engine->executor.num_steps();
        seconds += rows_are_dear ? 1e-3 * static_cast<double>(engine->executor.num_rows()) : 1e-3;
      }
      return seconds;
    };
    TestEngine test(FakeNetwork({std::nullopt}, kVocabSize), options);
    engine = &test;
    GenerationRequest request;
    request.prompt_tokens = {1, 1, 2, 2, 3, 3};
    request.sampling.logit_bias = {{1, 5.0f}};
    request.max_tokens = 2000;
    request.seed = 1;
    test.add(request);
    test.run();
    const EngineMetrics metrics = test.engine->metrics();
    if (rows_are_dear) {
      EXPECT_LT(metrics.num_draft_tokens, 200);
    } else {
      EXPECT_GT(metrics.num_accepted_tokens, 800);
    }
    EXPECT_EQ(metrics.generation_tokens, 2000);
    engine = nullptr;
  }
}

// The same question again: its answer is drafted from the first answer, of the same client and salt alone.
TEST(Speculation, APastAnswerIsDraftedForItsOwnerOnly) {
  constexpr int64_t kWords = 5000;  // nothing repeats by chance
  const FakeNetwork network({std::nullopt}, kWords);
  for (const float temperature : {0.0f, 1.0f}) {
    EngineOptions options;
    options.speculation = always(SpeculationMethod::kSuffix);
    options.prefix_cache = temperature == 0;  // drafts do not depend on it
    TestEngine test(network, options);
    std::mt19937 random(11);
    GenerationRequest request;
    request.prompt_tokens = random_tokens(random, 50, kWords);
    request.sampling.temperature = temperature;
    request.max_tokens = 80;
    request.client = 1;
    request.cache_salt = "a";
    const std::vector<int32_t> expected = reference_completion(network, request.prompt_tokens, request.sampling, request.seed, 0, 80);
    const auto num_accepted = [&](int32_t client, const std::string& salt) {
      const int64_t before = test.engine->metrics().num_accepted_tokens;
      request.client = client;
      request.cache_salt = salt;
      const RequestId id = test.add(request);
      test.run();
      EXPECT_EQ(test.logs[id].sequences[0].tokens, expected);
      return test.engine->metrics().num_accepted_tokens - before;
    };
    EXPECT_LT(num_accepted(1, "a"), 5);
    const int64_t steps = test.executor.num_steps();
    EXPECT_GT(num_accepted(1, "a"), 60);
    EXPECT_LT(test.executor.num_steps() - steps, 20);
    EXPECT_LT(num_accepted(2, "a"), 5);
    EXPECT_LT(num_accepted(1, "b"), 5);
    EXPECT_LT(num_accepted(0, ""), 5);
    EXPECT_GT(num_accepted(1, "a"), 60);
    EXPECT_GT(test.engine->metrics().num_past_output_tokens, 5 * 80);
  }
}

// A sibling that has ended helps those that go on, and a request that is cancelled leaves what it was answered until then.
TEST(Speculation, WhatWasCancelledIsLearnedFromToo) {
  constexpr int64_t kWords = 5000;
  EngineOptions options;
  options.speculation = always(SpeculationMethod::kSuffix);
  TestEngine test(FakeNetwork({std::nullopt}, kWords), options);
  GenerationRequest request;
  request.prompt_tokens = {1, 2, 3};
  request.sampling.temperature = 0;
  request.max_tokens = 200;
  const RequestId cancelled = test.add(request);
  for (int i = 0; i < 100; ++i) test.engine->step();
  test.engine->cancel(cancelled);
  test.run();
  EXPECT_NEAR(static_cast<double>(test.engine->metrics().num_past_output_tokens), 100, 10);
  const int64_t steps = test.executor.num_steps();
  test.add(request);
  test.run();
  EXPECT_LT(test.executor.num_steps() - steps, 100 + 30);
}

TEST(Speculation, OptionsAreChecked) {
  SpeculationOptions shallow{.method = SpeculationMethod::kSuffix}, boundless = shallow, negative = shallow;
  shallow.past_output.depth_max = 1;
  boundless.past_output.num_tokens_max = int64_t{1} << 40;
  negative.past_output.num_outputs_max = -1;
  for (const SpeculationOptions& speculation :
       {shallow, boundless, negative, SpeculationOptions{.method = SpeculationMethod::kNgram, .num_speculative_tokens = 0},
        SpeculationOptions{.method = SpeculationMethod::kNgram, .num_speculative_tokens = 1000},
        SpeculationOptions{.method = SpeculationMethod::kNgram, .prompt_lookup_min = 0},
        SpeculationOptions{.method = SpeculationMethod::kNgram, .prompt_lookup_min = 17}}) {
    FakeExecutor executor(FakeNetwork({std::nullopt}));
    EngineOptions options;
    options.speculation = speculation;
    EXPECT_EQ(Engine::create(executor, nullptr, options).status().code(), StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace millrace
