// Encoder-decoders in the engine: a request's prompt is a source text, and what answers it does not depend on company, chunks, memory or
// threads (docs/design.md D5).
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "millrace/base/mapped_file.h"
#include "millrace/base/test_data.h"
#include "millrace/engine/engine.h"
#include "millrace/engine/loaded_model.h"

namespace millrace {
namespace {

using testing::HasSubstr;

std::filesystem::path golden(std::string_view name) { return source_dir() / "tests/golden/seq2seq" / name; }

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;  // of the tokens, and of the likeliest at each place: equal bits, so equal logits
  std::optional<FinishReason> reason;
  Usage usage;
  bool operator==(const Answer& other) const { return tokens == other.tokens && logprobs == other.logprobs; }
};

class Answers {
 public:
  Answers(std::string_view name, int num_threads, EngineOptions options, GemmPath path = GemmPath::kFast, KvDType kv_dtype = KvDType::kBf16)
      : model_(LoadedModel::load(golden(name).string(), {.num_threads = num_threads}).value()),
        executor_(model_->make_executor(path, kv_dtype, static_cast<int32_t>(options.step_tokens_max)).value()) {
    auto made = Engine::create(*executor_, nullptr, std::move(options));
    MR_CHECK(made.is_ok(), made.status().message());
    engine_ = std::move(made).value();
  }

  void add(const GenerationRequest& request) {
    const std::size_t index = answers_.size();
    answers_.emplace_back(static_cast<std::size_t>(request.n));
    const auto added = engine_->add(request, [this, index](OutputDelta& delta) {
      Answer& answer = answers_[index][static_cast<std::size_t>(delta.sequence)];
      answer.tokens.insert(answer.tokens.end(), delta.token_ids.begin(), delta.token_ids.end());
      for (const TokenLogprob& token : delta.logprobs) {
        answer.logprobs.push_back(token.logprob);
        for (const auto& [id, logprob] : token.top_logprobs) answer.logprobs.push_back(logprob);
      }
      if (delta.finish_reason) answer.reason = delta.finish_reason;
      answer.usage = delta.usage;
    });
    ASSERT_TRUE(added.is_ok()) << added.status().message();
  }

  // [request][sequence]
  const std::vector<std::vector<Answer>>& run() {
    while (engine_->step()) {
    }
    return answers_;
  }

  Engine& engine() { return *engine_; }
  const CpuExecutor& executor() const { return *executor_; }
  int64_t block_bytes() const {
    int64_t sum = 0;
    for (const KvGroupSpec& group : executor_->info().kv_groups) sum += group.block_bytes;
    return sum;
  }

 private:
  std::vector<std::vector<Answer>> answers_;
  std::unique_ptr<LoadedModel> model_;
  std::unique_ptr<CpuExecutor> executor_;
  std::unique_ptr<Engine> engine_;
};

// Sources of one token to several blocks, some of them equal at their beginning; sampled and greedy.
std::vector<GenerationRequest> requests() {
  std::mt19937 random(11);
  std::vector<GenerationRequest> requests;
  std::vector<int32_t> shared(40);
  for (int32_t& token : shared) token = static_cast<int32_t>(random() % 600);
  for (const std::size_t length : {1u, 31u, 32u, 33u, 70u, 100u, 64u, 5u}) {
    GenerationRequest request;
    request.prompt_tokens = shared;
    request.prompt_tokens.resize(std::min<std::size_t>(length, 40));
    while (request.prompt_tokens.size() < length) request.prompt_tokens.push_back(static_cast<int32_t>(random() % 600));
    request.sampling.temperature = length % 2 == 0 ? 0.0f : 0.8f;
    request.sampling.num_logprobs = 3;
    request.seed = length;
    request.max_tokens = 40 + static_cast<int64_t>(length % 7);
    request.ignore_eos = true;
    requests.push_back(request);
  }
  return requests;
}

std::vector<Answer> alone(std::string_view name, KvDType kv_dtype) {
  std::vector<Answer> answers;
  for (const GenerationRequest& request : requests()) {
    Answers one(name, 1, {}, GemmPath::kFast, kv_dtype);
    one.add(request);
    answers.push_back(one.run()[0][0]);
    EXPECT_EQ(answers.back().reason, FinishReason::kLength);
    EXPECT_EQ(static_cast<int64_t>(answers.back().tokens.size()), *request.max_tokens);
    EXPECT_EQ(answers.back().usage.prompt_tokens, static_cast<int64_t>(request.prompt_tokens.size()));
  }
  return answers;
}

TEST(SourceText, GreedyAnswersAreTheReferences) {
  for (const auto& entry : std::filesystem::directory_iterator(source_dir() / "tests/golden/seq2seq")) {
    SCOPED_TRACE(entry.path().filename().string());
    const auto reference = parse_json(read_text_file((entry.path() / "golden.json").string()).value()).value();
    Answers engine(entry.path().filename().string(), 2, {}, GemmPath::kExact, KvDType::kF32);
    std::vector<std::vector<int32_t>> want;
    // Some networks begin their answers with a second token, which the reference leaves to the network.
    if (engine.executor().info().start_tokens.size() > 1) continue;
    for (const json::value& result : reference.at("results").as_array()) {
      GenerationRequest request;
      for (const json::value& id : result.at("ids").as_array()) request.prompt_tokens.push_back(static_cast<int32_t>(id.as_int64()));
      std::vector<int32_t>& greedy = want.emplace_back();
      for (const json::value& id : result.at("greedy").as_array()) greedy.push_back(static_cast<int32_t>(id.as_int64()));
      request.max_tokens = static_cast<int64_t>(greedy.size());
      request.sampling.temperature = 0;
      request.ignore_eos = true;
      engine.add(request);
    }
    const auto& answers = engine.run();
    for (std::size_t i = 0; i < want.size(); ++i) EXPECT_EQ(answers[i][0].tokens, want[i]) << i;
  }
}

TEST(SourceText, AnswersDoNotDependOnCompanyChunksMemoryOrThreads) {
  for (const char* name : {"t5", "bart"}) {
    for (const KvDType kv_dtype : kAllKvDTypes) {
      const std::vector<Answer> want = alone(name, kv_dtype);
      struct Way {
        int threads;
        int64_t step_tokens, chunk, blocks;  // 0: as many as there may be
        bool speculates;
      };
      int64_t num_preemptions = 0;
      for (const Way& way : {Way{1, 512, 256, 0, false}, Way{3, 16, 1, 0, false}, Way{2, 64, 32, 9, false}, Way{2, 64, 32, 0, true}}) {
        SCOPED_TRACE(fmt::format("{} kv {}: {} threads, steps of {}, {} blocks{}", name, static_cast<int>(kv_dtype), way.threads,
                                 way.step_tokens, way.blocks, way.speculates ? ", with drafts" : ""));
        EngineOptions options;
        options.step_tokens_max = way.step_tokens;
        options.max_running_sequences = std::min<int64_t>(16, way.step_tokens);
        options.prefill_chunk_max = way.chunk;
        options.speculation.method = way.speculates ? SpeculationMethod::kNgram : SpeculationMethod::kOff;
        options.speculation.adaptive = false;
        if (way.blocks > 0) options.kv_bytes = way.blocks * Answers(name, 1, {}, GemmPath::kFast, kv_dtype).block_bytes();
        Answers together(name, way.threads, options, GemmPath::kFast, kv_dtype);
        for (const GenerationRequest& request : requests()) {
          together.add(request);
          together.engine().step();
        }
        const auto& answers = together.run();
        for (std::size_t i = 0; i < want.size(); ++i) EXPECT_EQ(answers[i][0], want[i]) << "request " << i;
        const EngineMetrics metrics = together.engine().metrics();
        num_preemptions += metrics.num_preemptions;
        EXPECT_EQ(metrics.num_draft_tokens > 0, way.speculates);
        EXPECT_EQ(metrics.prefix_cache_hits, 0);
        for (const auto& group : metrics.kv_groups) EXPECT_EQ(group.num_used_blocks, 0);
      }
      EXPECT_GT(num_preemptions, 0);
    }
  }
}

TEST(SourceText, EachOfNSequencesReadsTheSource) {
  GenerationRequest request = requests()[5];
  std::vector<Answer> want;
  request.n = 3;
  request.sampling.temperature = 1;
  Answers first("t5", 2, {}), second("t5", 1, {});
  first.add(request);
  second.add(requests()[2]);
  second.add(request);
  const auto &a = first.run()[0], &b = second.run()[1];
  ASSERT_EQ(a.size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(a[i], b[i]) << i;
  EXPECT_NE(a[0].tokens, a[1].tokens);
}

TEST(SourceText, WhatIsTooLongIsRefusedByName) {
  EngineOptions options;
  options.max_context = 64;
  Answers engine("t5", 1, options);
  EXPECT_TRUE(engine.engine().answers_sources());
  EXPECT_EQ(engine.engine().max_prompt_tokens(), 64);
  EXPECT_EQ(engine.engine().max_completion_tokens(64), 63);
  GenerationRequest request;
  request.prompt_tokens.assign(65, 3);
  EXPECT_THAT(std::string(engine.engine().add(request, {}).status().message()), HasSubstr("65 tokens, the model reads at most 64"));
  request.prompt_tokens.assign(64, 3);
  request.max_tokens = 64;
  EXPECT_THAT(std::string(engine.engine().add(request, {}).status().message()), HasSubstr("at most 63 tokens"));
  request.max_tokens = 63;
  EXPECT_TRUE(engine.engine().add(request, {}).is_ok());
}

}  // namespace
}  // namespace millrace
