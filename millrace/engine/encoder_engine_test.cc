#include "millrace/engine/encoder_engine.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <random>
#include <thread>

#include "millrace/base/test_data.h"
#include "millrace/engine/loaded_model.h"

namespace millrace {
namespace {

std::string encoder(std::string_view name) { return (source_dir() / "tests/golden/encoders" / name).string(); }

std::vector<EncoderInput> random_texts(uint32_t seed, std::size_t count, int64_t longest, const Network& network) {
  std::mt19937 random(seed);
  std::vector<EncoderInput> texts(count);
  for (EncoderInput& text : texts) {
    text.tokens.resize(1 + random() % static_cast<uint32_t>(longest));
    for (int32_t& id : text.tokens) id = static_cast<int32_t>(random() % static_cast<uint32_t>(network.vocab_size));
    const auto num_types = network.token_types ? static_cast<uint32_t>(network.token_types->rows()) : 1;
    if (random() % 2 == 0) continue;  // with types and without stand side by side
    for (std::size_t i = 0; i < text.tokens.size(); ++i) text.token_types.push_back(static_cast<int32_t>(random() % num_types));
  }
  return texts;
}

struct Encoder {
  std::unique_ptr<LoadedModel> model;
  std::unique_ptr<CpuExecutor> executor;
  std::unique_ptr<EncoderEngine> engine;

  explicit Encoder(const std::string& path, EncoderEngineOptions options = {}, int num_threads = 1, GemmPath gemm_path = GemmPath::kFast,
                   KvDType kv_dtype = KvDType::kBf16) {
    auto loaded = LoadedModel::load(path, {.num_threads = num_threads});
    MR_CHECK(loaded.is_ok(), loaded.status().message());
    model = std::move(loaded).value();
    const int64_t rows = EncoderEngine::rows_needed(options, model->network().max_positions);
    executor = model->make_executor(gemm_path, kv_dtype, static_cast<int32_t>(rows)).value();
    engine = EncoderEngine::create(*executor, options).value();
  }

  // All texts as one request, in steps of the engine's budget.
  std::vector<std::vector<float>> encode(std::vector<EncoderInput> texts) {
    std::vector<std::vector<float>> outputs;
    EXPECT_TRUE(engine
                    ->add(std::move(texts),
                          [&](EncodeResult& result) {
                            EXPECT_TRUE(result.error.is_ok()) << result.error.message();
                            outputs = std::move(result.outputs);
                          })
                    .is_ok());
    while (engine->step()) {
    }
    return outputs;
  }
};

// docs/design.md D5 for encoders: a text's numbers are the same bits alone, in any batch, for any number of threads.
TEST(EncoderEngine, ATextGivesTheSameBitsInAnyCompany) {
  for (const auto& entry : std::filesystem::directory_iterator(source_dir() / "tests/golden/encoders")) {
    for (const auto& [path, kv_dtype] :
         {std::pair{GemmPath::kFast, KvDType::kBf16}, {GemmPath::kFast, KvDType::kInt8}, {GemmPath::kExact, KvDType::kF32}}) {
      SCOPED_TRACE(fmt::format("{} path {} kv {}", entry.path().filename().string(), static_cast<int>(path), static_cast<int>(kv_dtype)));
      Encoder reference(entry.path().string(), {}, 1, path, kv_dtype);
      const std::vector<EncoderInput> texts = random_texts(3, 24, 100, reference.model->network());
      std::vector<std::vector<float>> alone;
      for (const EncoderInput& text : texts) alone.push_back(reference.encode({text}).at(0));
      for (const int64_t budget : {1, 64, 500, 100000}) {
        for (const int num_threads : {1, 3}) {
          SCOPED_TRACE(fmt::format("steps of {} tokens, {} threads", budget, num_threads));
          Encoder other(entry.path().string(), {.step_tokens_max = budget}, num_threads, path, kv_dtype);
          EXPECT_EQ(other.encode(texts), alone);
        }
      }
    }
  }
}

TEST(EncoderEngine, RequestsShareStepsAndTakeTurns) {
  Encoder encoder_of_bert(encoder("bert"), {.step_tokens_max = 64});
  EncoderEngine& engine = *encoder_of_bert.engine;
  std::vector<std::string> answered;
  const auto add = [&](const std::string& name, std::size_t num_texts) {
    std::vector<EncoderInput> texts(num_texts, EncoderInput{std::vector<int32_t>(10, 5), {}});
    ASSERT_TRUE(engine
                    .add(std::move(texts),
                         [&answered, name, num_texts](EncodeResult& result) {
                           EXPECT_EQ(result.outputs.size(), num_texts);
                           EXPECT_EQ(result.num_tokens, static_cast<int64_t>(10 * num_texts));
                           answered.push_back(name);
                         })
                    .is_ok());
  };
  add("many", 20);
  add("one", 1);
  add("three", 3);
  ASSERT_TRUE(engine.step());  // six texts: of many, one, three, many, three, many
  EXPECT_EQ(answered, std::vector<std::string>{"one"});
  ASSERT_TRUE(engine.step());
  EXPECT_EQ(answered, (std::vector<std::string>{"one", "three"}));
  while (engine.step()) {
  }
  EXPECT_EQ(answered, (std::vector<std::string>{"one", "three", "many"}));
  const EngineMetrics metrics = engine.metrics();
  EXPECT_EQ(metrics.num_steps, 4);
  EXPECT_EQ(metrics.prompt_tokens, 240);
  EXPECT_EQ(metrics.num_live_requests, 0);
  EXPECT_EQ(metrics.request_latency.count(), 3);
}

TEST(EncoderEngine, ACancelledRequestIsForgotten) {
  Encoder encoder_of_bert(encoder("bert"), {.step_tokens_max = 16});
  EncoderEngine& engine = *encoder_of_bert.engine;
  int answers = 0;
  const auto count = [&](EncodeResult&) { ++answers; };
  const auto text = EncoderInput{std::vector<int32_t>(10, 5), {}};
  const RequestId first = engine.add({text, text, text}, count).value();
  ASSERT_TRUE(engine.add({text}, count).is_ok());
  ASSERT_TRUE(engine.step());
  engine.cancel(first);
  engine.cancel(first);
  engine.cancel(999);
  while (engine.step()) {
  }
  EXPECT_EQ(answers, 1);
  EXPECT_EQ(engine.metrics().num_live_requests, 0);
}

TEST(EncoderEngine, BadTextsAndFullQueuesAreRefused) {
  Encoder encoder_of_bert(encoder("bert"), {.max_text_tokens = 20, .max_queued_requests = 2, .max_queued_tokens = 25});
  EncoderEngine& engine = *encoder_of_bert.engine;
  const auto refusal = [&](std::vector<EncoderInput> texts) {
    const auto added = engine.add(std::move(texts), nullptr);
    return added.is_ok() ? std::string("accepted") : added.status().message();
  };
  const EncoderInput good{{2, 3}, {}};
  EXPECT_EQ(refusal({}), "a request needs at least one text");
  EXPECT_EQ(refusal({good, {}}), "text 1 has no tokens");
  EXPECT_EQ(refusal({{std::vector<int32_t>(21, 1), {}}}), "text 0 has 21 tokens, the model reads at most 20");
  EXPECT_EQ(refusal({{{2, 620}, {}}}), "text 0: token id 620 is outside the vocabulary [0, 620)");
  EXPECT_EQ(refusal({{{2, -1}, {}}}), "text 0: token id -1 is outside the vocabulary [0, 620)");
  EXPECT_EQ(refusal({{{2, 3}, {0}}}), "text 0 has 1 token types for 2 tokens");
  EXPECT_EQ(refusal({{{2, 3}, {0, 2}}}), "text 0: token type 2, expected 0 to 1");
  EXPECT_EQ(refusal({{std::vector<int32_t>(20, 1), {}}}), "accepted");
  EXPECT_EQ(refusal({{std::vector<int32_t>(6, 1), {}}}), "20 tokens are waiting and 6 more would pass the limit of 25");
  EXPECT_EQ(refusal({good}), "accepted");
  EXPECT_EQ(refusal({good}), "2 requests are waiting, the limit is 2");
  EXPECT_EQ(engine.metrics().num_rejected, 2);
}

TEST(EncoderEngine, AThreadAnswersAndStoppingAnswersTheRest) {
  Encoder encoder_of_bert(encoder("bert"), {}, 2);
  EncoderEngine& engine = *encoder_of_bert.engine;
  engine.start();
  std::atomic<int> answers = 0;
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(engine
                    .add(random_texts(static_cast<uint32_t>(i), 3, 60, encoder_of_bert.model->network()),
                         [&](EncodeResult& result) {
                           EXPECT_TRUE(result.error.is_ok());
                           ++answers;
                         })
                    .is_ok());
  }
  EXPECT_TRUE(engine.drain(std::chrono::minutes(1)));
  EXPECT_EQ(answers, 50);
  const auto refused = engine.add({EncoderInput{{2, 3}, {}}}, nullptr);
  ASSERT_FALSE(refused.is_ok());
  EXPECT_EQ(refused.status().code(), StatusCode::kUnavailable);

  Encoder idle(encoder("bert"));  // never stepped
  Status error;
  ASSERT_TRUE(idle.engine->add({EncoderInput{{2, 3}, {}}}, [&](EncodeResult& result) { error = result.error; }).is_ok());
  idle.engine->stop();
  EXPECT_EQ(error.code(), StatusCode::kUnavailable);
}

// A second signal at a server comes while the first one's drain waits: it must not wait with it.
TEST(EncoderEngine, StoppingEndsADrain) {
  Encoder encoder_of_bert(encoder("bert"), {.step_tokens_max = 64});
  EncoderEngine& engine = *encoder_of_bert.engine;
  std::atomic<int> done = 0, failed = 0;
  std::atomic<bool> has_begun = false, may_go_on = false;
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(engine
                    .add(random_texts(static_cast<uint32_t>(i), 3, 60, encoder_of_bert.model->network()),
                         [&](EncodeResult& result) {
                           ++(result.error.is_ok() ? done : failed);
                           has_begun = true;
                           while (!may_go_on) std::this_thread::yield();
                         })
                    .is_ok());
  }
  engine.start();
  std::atomic<bool> drained = true;
  std::thread drain([&] { drained = engine.drain(std::chrono::hours(1)); });
  while (!has_begun) std::this_thread::yield();
  std::thread stop([&] { engine.stop(); });
  may_go_on = true;
  stop.join();
  drain.join();
  EXPECT_EQ(done + failed, 100);
  EXPECT_TRUE(!drained || failed == 0);
  EXPECT_EQ(engine.metrics().num_live_requests, 0);
}

// Memory follows the tokens of a step, not its longest text times its number of texts.
TEST(EncoderEngine, ActivationsGrowWithTokensOnly) {
  auto model = LoadedModel::load(encoder("bert"), {.num_threads = 1}).value();
  auto executor = model->make_executor(GemmPath::kFast, KvDType::kBf16, 512).value();
  const int64_t planned = executor->activation_bytes();
  auto engine = EncoderEngine::create(*executor, {.step_tokens_max = 512}).value();
  std::vector<EncoderInput> texts(200, EncoderInput{{2, 3}, {}});
  texts.push_back({std::vector<int32_t>(256, 4), {}});
  ASSERT_TRUE(engine->add(std::move(texts), nullptr).is_ok());
  while (engine->step()) {
  }
  EXPECT_EQ(engine->metrics().num_steps, 2);
  EXPECT_EQ(executor->activation_bytes(), planned);
}

}  // namespace
}  // namespace millrace
