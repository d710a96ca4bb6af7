#include "millrace/engine/model_drafter.h"

#include <gtest/gtest.h>

#include "millrace/base/test_data.h"
#include "millrace/engine/draft_planner.h"
#include "millrace/engine/engine_fixture.h"
#include "millrace/engine/loaded_model.h"

// Drafts of a second model change nothing but the number of steps: token for token the judge's completion, whatever the draft model says.
namespace millrace {
namespace {

constexpr int64_t kVocabSize = 5;  // so small that even a stranger's draft is right now and then

SpeculationOptions always(Executor& draft) {
  return {.method = SpeculationMethod::kDraftModel, .num_speculative_tokens = 5, .adaptive = false, .draft_executor = &draft};
}

GenerationRequest random_request(std::mt19937& random, std::size_t max_prompt, int64_t max_tokens) {
  GenerationRequest request;
  request.prompt_tokens = random_tokens(random, 1 + random() % max_prompt, kVocabSize);
  request.max_tokens = 1 + static_cast<int64_t>(random()) % max_tokens;
  request.seed = random();
  request.sampling.temperature = random() % 2 == 0 ? 0.0f : 1.0f;
  if (random() % 3 == 0) request.sampling.top_k = 3;
  if (random() % 3 == 0) request.sampling.repetition_penalty = 1.3f;
  if (random() % 4 == 0) request.sampling.frequency_penalty = 0.2f;
  if (random() % 4 == 0) request.n = 1 + static_cast<int32_t>(random() % 3);
  if (random() % 8 == 0) request.sampling.mirostat = 2, request.sampling.mirostat_tau = 1;  // never drafted for
  return request;
}

void expect_reference(const FakeNetwork& network, const GenerationRequest& request, const RequestLog& log) {
  ASSERT_TRUE(log.finished);
  for (const auto& [index, sequence] : log.sequences) {
    EXPECT_EQ(sequence.reason, FinishReason::kLength);
    EXPECT_EQ(sequence.tokens,
              reference_completion(network, request.prompt_tokens, request.sampling, request.seed, index, *request.max_tokens));
  }
}

struct Totals {
  int64_t drafted = 0, accepted = 0, preemptions = 0;
};

// Company, windows, chunks and little memory, of the target and of the draft model, each with every other.
Totals check_every_composition(const FakeNetwork& draft_network, const FakeNetwork& network, int64_t draft_kv_blocks) {
  Totals totals;
  for (const int64_t chunk : {5, 32, 100}) {
    for (const bool short_of_memory : {false, true}) {
      std::mt19937 random(static_cast<unsigned>(chunk));
      FakeExecutor draft(draft_network);
      EngineOptions options;
      options.speculation = always(draft);
      options.speculation.draft_kv_blocks = draft_kv_blocks;
      options.max_running_sequences = 6;
      options.prefill_chunk_max = chunk;
      options.step_tokens_max = std::max<int64_t>(chunk, 14);
      if (short_of_memory) options.kv_bytes = fake_kv_bytes(static_cast<int64_t>(network.windows().size()) * 13);
      TestEngine test(network, options, nullptr, 400);
      std::vector<std::pair<RequestId, GenerationRequest>> requests;
      for (int i = 0; i < 12; ++i) {
        const GenerationRequest request = random_request(random, 180, 90);
        requests.emplace_back(test.add(request), request);
        for (uint32_t steps = random() % 6; steps > 0; --steps) test.engine->step();
      }
      test.run();
      EXPECT_LE(test.executor.max_rows_seen(), options.step_tokens_max);
      EXPECT_LE(draft.max_rows_seen(), options.step_tokens_max);
      for (const auto& [id, request] : requests) expect_reference(network, request, test.logs[id]);
      EXPECT_EQ(test.num_used_blocks(), 0);
      const EngineMetrics metrics = test.engine->metrics();
      EXPECT_EQ(metrics.num_used_draft_blocks, 0);
      totals.drafted += metrics.num_draft_tokens, totals.accepted += metrics.num_accepted_tokens;
      totals.preemptions += metrics.num_preemptions;
    }
  }
  return totals;
}

TEST(ModelDrafter, TheSameModelIsAlwaysRightGreedyAndSampled) {
  for (const auto& windows : std::vector<std::vector<std::optional<int64_t>>>{{std::nullopt}, {std::nullopt, 40}, {17}}) {
    const FakeNetwork network(windows, kVocabSize);
    const Totals totals = check_every_composition(network, network, 0);
    EXPECT_GT(totals.drafted, 1000);
    EXPECT_EQ(totals.accepted, totals.drafted) << "what it draws is what the target draws, or its keys and values are wrong";
    if (windows.size() == 1 && !windows[0]) {
      EXPECT_GT(totals.preemptions, 0);
    }
  }
}

TEST(ModelDrafter, AnotherModelChangesNoToken) {
  const FakeNetwork network({std::nullopt, 40}, kVocabSize);
  const Totals totals = check_every_composition(FakeNetwork({std::nullopt}, kVocabSize), network, 0);
  EXPECT_GT(totals.drafted, 1000);
  EXPECT_GT(totals.accepted, 100);
  EXPECT_LT(totals.accepted, totals.drafted / 2);
  EXPECT_GT(totals.preemptions, 0);
}

TEST(ModelDrafter, WhoFindsNoBlocksGoesWithoutDrafts) {
  const FakeNetwork network({std::nullopt, 40}, kVocabSize);
  const Totals some = check_every_composition(network, network, 11), all = check_every_composition(network, network, 0);
  EXPECT_EQ(some.accepted, some.drafted);
  EXPECT_GT(some.drafted, all.drafted / 20);
  EXPECT_LT(some.drafted, all.drafted);
}

TEST(ModelDrafter, CancelGivesItsBlocksBackAndDisturbsNobody) {
  const FakeNetwork network({std::nullopt}, kVocabSize);
  std::mt19937 random(8);
  GenerationRequest stranger = random_request(random, 50, 60);
  stranger.n = 1, stranger.max_tokens = 60, stranger.sampling.mirostat = 0;
  int64_t used_most = 0;
  for (int steps = 0; steps < 20; ++steps) {
    FakeExecutor draft(network);
    EngineOptions options;
    options.speculation = always(draft);
    TestEngine test(network, options);
    const RequestId stranger_id = test.add(stranger);
    GenerationRequest target = random_request(random, 50, 80);
    target.max_tokens = 80;
    const RequestId id = test.add(target);
    for (int i = 0; i < steps; ++i) test.engine->step();
    used_most = std::max(used_most, test.engine->metrics().num_used_draft_blocks);
    test.engine->cancel(id);
    test.engine->step();
    EXPECT_TRUE(test.logs[id].finished);
    test.run();
    expect_reference(network, stranger, test.logs[stranger_id]);
    EXPECT_EQ(test.engine->metrics().num_used_draft_blocks, 0);
  }
  EXPECT_GT(used_most, 2);
}

// Sequences are drafted together: as many rounds as one draft has tokens, however many sequences there are.
TEST(ModelDrafter, SequencesAreDraftedTogether) {
  const FakeNetwork network({std::nullopt}, kVocabSize);
  FakeExecutor draft(network);
  EngineOptions options;
  options.speculation = always(draft);
  TestEngine test(network, options);
  std::mt19937 random(3);
  for (int i = 0; i < 6; ++i) {
    GenerationRequest request;
    request.prompt_tokens = random_tokens(random, 20, kVocabSize);
    request.max_tokens = 61;  // one after the prompt, and ten runs of a draft and the token behind it
    test.add(request);
  }
  test.run();
  EXPECT_EQ(test.executor.num_steps(), 11);
  EXPECT_EQ(draft.num_steps(), 10 * 5);
  EXPECT_EQ(test.engine->metrics().num_accepted_tokens, 6 * 50);
}

// A clock that goes by the rows and steps of both executors.
struct Simulated {
  double seconds = 0, speed = 0;
  EngineMetrics metrics;
};
Simulated simulate(const FakeNetwork& draft_network, double draft_step_seconds, bool on, double row_seconds = .03) {
  const FakeNetwork network({std::nullopt}, kVocabSize);
  FakeExecutor draft(draft_network);
  TestEngine* engine = nullptr;
  EngineOptions options;
  options.speculation = always(draft);
  options.speculation.adaptive = true;
  if (!on) options.speculation.method = SpeculationMethod::kOff;
  options.clock = [&] {
    if (engine == nullptr) return 0.0;
    return static_cast<double>(engine->executor.num_steps()) + row_seconds * static_cast<double>(engine->executor.num_rows_computed()) +
           draft_step_seconds * (static_cast<double>(draft.num_steps()) + row_seconds * static_cast<double>(draft.num_rows_computed()));
  };
  TestEngine test(network, options);
  engine = &test;
  std::mt19937 random(3);
  for (int i = 0; i < 3; ++i) {
    GenerationRequest request;
    request.prompt_tokens = random_tokens(random, 60, kVocabSize);
    request.max_tokens = 1500;
    request.seed = 7;
    test.add(request);
  }
  test.run();
  Simulated result{options.clock(), 0, test.engine->metrics()};
  engine = nullptr;
  return result;
}

TEST(ModelDrafter, PaysWhereTheDraftModelIsCheapAndRight) {
  const FakeNetwork same({std::nullopt}, kVocabSize);
  const double plain = simulate(same, .05, false).seconds;
  EXPECT_GT(plain / simulate(same, .05, true).seconds, 2);
}

TEST(ModelDrafter, IsSwitchedOffWhereItDoesNotPay) {
  const FakeNetwork same({std::nullopt}, kVocabSize), other({std::nullopt, 3}, kVocabSize);
  const double plain = simulate(same, 1, false).seconds;
  // As slow as the target, slower, and wrong four times out of five.
  for (const auto& [network, seconds] : {std::pair(same, 1.0), std::pair(same, 4.0), std::pair(other, .3), std::pair(other, 1.0)}) {
    const Simulated got = simulate(network, seconds, true);
    EXPECT_GT(plain / got.seconds, .98) << "a draft model of " << seconds << " steps";
    EXPECT_GT(got.metrics.num_draft_tokens, 0) << "it was never tried";
  }
}

// What is right again after a long time is found out.
TEST(ModelDrafter, IsTriedAgainNowAndThen) {
  DraftPlanner planner;
  StepSeconds rounds;
  planner.observe_step(1, 0, 1);
  rounds.observe(1, .1);
  int64_t num_trials = 0;
  for (int step = 0; step < 2000; ++step) {
    std::vector<DraftCandidate> candidates = {{.probabilities = {.01, .01, .01}, .num_draft_tokens = 0, .overhead_seconds = .01}};
    planner.choose(candidates, &rounds);
    const int64_t drafts = candidates[0].num_draft_tokens;
    num_trials += drafts > 0 ? 1 : 0;
    planner.observe_step(1 + drafts, drafts, 1 + .1 * static_cast<double>(drafts));
    planner.observe_drafts(1, drafts, 0, .1 * static_cast<double>(drafts));
  }
  EXPECT_GE(num_trials, 20);
  EXPECT_LE(num_trials, 100) << "a hundredth of the time, of trials that take some tenths of a step";
}

// ---- networks

std::unique_ptr<LoadedModel> load(const std::string& name, ThreadPool* pool = nullptr) {
  return LoadedModel::load((source_dir() / "tests/golden" / name).string(), {.num_threads = 2, .pool = pool}).value();
}

// Answers of 4 prompts together, greedy and sampled.
std::vector<std::vector<int32_t>> answers(LoadedModel& target, LoadedModel* draft, EngineMetrics& metrics, int64_t kv_bytes) {
  const auto executor = target.make_executor(GemmPath::kFast, KvDType::kBf16, 64).value();
  const auto draft_executor = draft != nullptr ? draft->make_executor(GemmPath::kFast, KvDType::kBf16, 64).value() : nullptr;
  EngineOptions options;
  options.step_tokens_max = 64;
  options.max_running_sequences = 4;
  options.kv_bytes = kv_bytes;
  if (draft != nullptr) options.speculation = always(*draft_executor);
  const auto engine = Engine::create(*executor, nullptr, options).value();
  std::vector<std::vector<int32_t>> tokens(4);
  std::mt19937 random(2);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    GenerationRequest request;
    request.prompt_tokens = random_tokens(random, 20 + 25 * i, 400);
    request.max_tokens = 70;
    request.ignore_eos = true;
    request.seed = i;
    request.sampling.temperature = i % 2 == 0 ? 0.0f : 1.0f;
    EXPECT_TRUE(
        engine
            ->add(request,
                  [&tokens, i](OutputDelta& delta) { tokens[i].insert(tokens[i].end(), delta.token_ids.begin(), delta.token_ids.end()); })
            .is_ok());
  }
  while (engine->step()) {
  }
  metrics = engine->metrics();
  EXPECT_EQ(metrics.num_used_draft_blocks, 0);
  return tokens;
}

TEST(ModelDrafter, TokensOfNetworksAreTheSameWithDrafts) {
  const auto target = load("models/llama"), other = load("models/qwen3", &target->pool()), windowed = load("models/gemma3_text");
  const auto* vocabulary = *target->tokenizer();
  EXPECT_TRUE(check_same_vocabulary(**other->tokenizer(), *vocabulary).is_ok());
  EngineMetrics metrics;
  for (const int64_t kv_bytes : {int64_t{8} << 20, int64_t{0}}) {
    int64_t bytes = kv_bytes;
    if (bytes == 0) {
      // Little more than the longest request needs: the others are preempted.
      const auto executor = target->make_executor(GemmPath::kFast, KvDType::kBf16, 64).value();
      for (const KvGroupSpec& group : executor->info().kv_groups) bytes += 7 * group.block_bytes;
    }
    const auto plain = answers(*target, nullptr, metrics, bytes);
    for (const auto& tokens : plain) EXPECT_EQ(tokens.size(), 70u);
    EXPECT_EQ(metrics.num_preemptions > 0, kv_bytes == 0);
    EXPECT_EQ(answers(*target, target.get(), metrics, bytes), plain);
    EXPECT_GT(metrics.num_draft_tokens, 100);
    EXPECT_EQ(metrics.num_accepted_tokens, metrics.num_draft_tokens);
    EXPECT_EQ(answers(*target, other.get(), metrics, bytes), plain);
    EXPECT_GT(metrics.num_draft_tokens, 100);
    EXPECT_LT(metrics.num_accepted_tokens, metrics.num_draft_tokens / 2);
  }
  const auto plain = answers(*windowed, nullptr, metrics, int64_t{8} << 20);
  EXPECT_EQ(answers(*windowed, windowed.get(), metrics, int64_t{8} << 20), plain);
  EXPECT_EQ(metrics.num_accepted_tokens, metrics.num_draft_tokens) << "blocks behind the draft model's windows";
}

// ---- what does not go together

TEST(ModelDrafter, AnotherVocabularyIsRefusedByItsFirstDifference) {
  GgufVocabulary vocabulary;
  vocabulary.model = "llama";
  vocabulary.tokens = {"<unk>", "<s>", "</s>", "\u2581mill", "\u2581race"};
  vocabulary.scores = {0, 0, 0, -1, -2};
  vocabulary.token_types = {2, 3, 3, 1, 1};
  vocabulary.bos_token_id = 1, vocabulary.eos_token_id = 2, vocabulary.unknown_token_id = 0;
  const Tokenizer target = Tokenizer::from_gguf(vocabulary).value();
  const auto refusal = [&](const std::function<void(GgufVocabulary&)>& change) {
    GgufVocabulary changed = vocabulary;
    change(changed);
    return std::string(check_same_vocabulary(Tokenizer::from_gguf(changed).value(), target).message());
  };
  EXPECT_EQ(refusal([](GgufVocabulary&) {}), "");
  EXPECT_NE(refusal([](GgufVocabulary& v) {
              v.tokens.push_back("x"), v.scores.push_back(0), v.token_types.push_back(1);
            }).find("it has 6 tokens, expected the target's 5"),
            std::string::npos);
  EXPECT_NE(refusal([](GgufVocabulary& v) { v.tokens[4] = "\u2581rice"; }).find("token 4 is \" rice\", expected the target's \" race\""),
            std::string::npos)
      << refusal([](GgufVocabulary& v) { v.tokens[4] = "\u2581rice"; });
  EXPECT_NE(refusal([](GgufVocabulary& v) { v.token_types[3] = 3; }).find("token 3"), std::string::npos);
  EXPECT_NE(refusal([](GgufVocabulary& v) { v.eos_token_id = 1; }).find("EOS is token 1, expected the target's, token 2"),
            std::string::npos);
}

TEST(ModelDrafter, ModelsThatCannotDraftAreRefused) {
  const auto target = load("models/llama"), state = load("models/lfm2", &target->pool()), reader = load("seq2seq/t5"),
             encoder = load("encoders/bert");
  const auto info = [](LoadedModel& model) { return model.make_executor(GemmPath::kFast, KvDType::kBf16, 64).value()->info(); };
  const ExecutorInfo llama = info(*target);
  EXPECT_TRUE(check_draft_model(llama, llama).is_ok());
  EXPECT_EQ(check_draft_model(info(*state), llama).code(), StatusCode::kUnsupported);
  EXPECT_EQ(check_draft_model(info(*reader), llama).code(), StatusCode::kUnsupported);
  EXPECT_EQ(check_draft_model(info(*encoder), llama).code(), StatusCode::kUnsupported);
  EXPECT_EQ(check_draft_model(llama, info(*reader)).code(), StatusCode::kUnsupported);
  ExecutorInfo more = llama;
  ++more.sampled_vocab_size;
  EXPECT_EQ(check_draft_model(more, llama).code(), StatusCode::kInvalidArgument);
  FakeExecutor executor(FakeNetwork({std::nullopt})), other(FakeNetwork({std::nullopt}, 62));
  EngineOptions options;
  options.speculation = {.method = SpeculationMethod::kDraftModel};
  EXPECT_EQ(Engine::create(executor, nullptr, options).status().code(), StatusCode::kInvalidArgument) << "without a draft model";
  options.speculation = always(other);
  EXPECT_EQ(Engine::create(executor, nullptr, options).status().code(), StatusCode::kInvalidArgument) << "of 62 tokens";
}

}  // namespace
}  // namespace millrace
