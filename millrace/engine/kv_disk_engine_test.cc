// The disk tier under the engine: a prefix that comes from a file gives the tokens, and the bits of the logits, that it gives when it is
// computed.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "millrace/base/temporary_directory.h"
#include "millrace/base/test_data.h"
#include "millrace/engine/engine_fixture.h"
#include "millrace/engine/kv_disk_folder.h"
#include "millrace/engine/loaded_model.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

EngineOptions with_disk(const std::string& folder, std::vector<std::string>* warnings = nullptr) {
  EngineOptions options;
  options.kv_disk.folder = folder;
  options.kv_disk.fingerprint = "test";
  options.clock = [] { return 0.0; };  // reading takes no more than computing
  options.kv_disk.on_warning = [warnings](const std::string& message) {
    warnings != nullptr ? warnings->push_back(message) : (void)(ADD_FAILURE() << message);
  };
  return options;
}

void expect_reference(const FakeNetwork& network, const GenerationRequest& request, RequestLog& log) {
  EXPECT_EQ(log.sequences[0].tokens,
            reference_completion(network, request.prompt_tokens, request.sampling, request.seed, 0, *request.max_tokens));
}

int64_t flip_a_byte_of_every_file(const std::string& folder) {
  int64_t count = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.path().extension() != ".kv") continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(KvDiskFolder::kHeaderBytes + 9);
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(KvDiskFolder::kHeaderBytes + 9);
    file.put(byte);
    ++count;
  }
  return count;
}

TEST(KvDiskEngine, APromptIsCachedAfterARestart) {
  const std::vector<std::vector<std::optional<int64_t>>> groupings = {{std::nullopt}, {std::nullopt, 40}, {17}, {64, std::nullopt, 5}};
  for (const auto& windows : groupings) {
    const TemporaryDirectory folder;
    const FakeNetwork network(windows);
    std::mt19937 random(3);
    GenerationRequest request;
    request.prompt_tokens = random_tokens(random, 200);
    request.max_tokens = 50;
    for (const int64_t cached : {0, 192, 192}) {
      TestEngine test(network, with_disk(folder.file("kv")));
      const RequestId id = test.add(request);
      test.run();
      EXPECT_EQ(test.logs[id].usage.cached_tokens, cached);
      expect_reference(network, request, test.logs[id]);
      EXPECT_EQ(test.engine->metrics().kv_disk->num_read > 0, cached > 0);
    }
    // What was generated is found by a conversation that goes on; this network computes prompts in another way, so only up to there.
    TestEngine test(network, with_disk(folder.file("kv")));
    const auto completion = reference_completion(network, request.prompt_tokens, request.sampling, request.seed, 0, 50);
    request.prompt_tokens.insert(request.prompt_tokens.end(), completion.begin(), completion.end());
    const RequestId id = test.add(request);
    test.run();
    EXPECT_EQ(test.logs[id].usage.cached_tokens, 192);
    expect_reference(network, request, test.logs[id]);
  }
}

TEST(KvDiskEngine, DamagedFilesCostTimeAndNothingElse) {
  const TemporaryDirectory folder;
  const FakeNetwork network({std::nullopt, 40});
  std::mt19937 random(4);
  GenerationRequest request;
  request.prompt_tokens = random_tokens(random, 200);
  request.max_tokens = 5;
  {
    TestEngine test(network, with_disk(folder.file("kv")));
    test.add(request);
    test.run();
  }
  EXPECT_EQ(flip_a_byte_of_every_file(folder.file("kv")), 12);
  std::vector<std::string> warnings;
  {
    TestEngine test(network, with_disk(folder.file("kv"), &warnings));
    const RequestId id = test.add(request);
    test.run();
    EXPECT_EQ(test.logs[id].usage.cached_tokens, 0);
    expect_reference(network, request, test.logs[id]);
    EXPECT_GT(test.engine->metrics().kv_disk->num_rejected, 0);
    EXPECT_EQ(static_cast<int64_t>(warnings.size()), test.engine->metrics().kv_disk->num_rejected);
    EXPECT_EQ(test.num_used_blocks(), 0);
  }
  EXPECT_GT(warnings.size(), 0u);
}

// Memory for hardly more than one prompt, and a dozen of prompts in turn: what memory has lost, the disk has.
TEST(KvDiskEngine, WhatMemoryHasNoRoomForComesFromTheDisk) {
  const std::vector<std::vector<std::optional<int64_t>>> groupings = {{std::nullopt}, {std::nullopt, 40}, {17}};
  for (const auto& windows : groupings) {
    const TemporaryDirectory folder;
    const FakeNetwork network(windows);
    std::mt19937 random(5);
    std::vector<GenerationRequest> requests(12);
    for (GenerationRequest& request : requests) {
      request.prompt_tokens = random_tokens(random, 100 + random() % 150);
      request.max_tokens = 20;
      request.seed = random();
      request.sampling.temperature = 1;
    }
    EngineOptions options = with_disk(folder.file("kv"));
    options.kv_bytes = fake_kv_bytes(static_cast<int64_t>(windows.size()) * 12);
    options.step_tokens_max = 64;
    options.max_running_sequences = 4;
    TestEngine test(network, options, nullptr, 300);
    for (int round = 0; round < 4; ++round) {
      std::vector<RequestId> ids;
      for (const GenerationRequest& request : requests) {
        ids.push_back(test.add(request));
        if (round % 2 == 0) test.run();  // one after the other, then all together
      }
      test.run();
      for (std::size_t i = 0; i < ids.size(); ++i) {
        expect_reference(network, requests[i], test.logs[ids[i]]);
        if (round > 0) {
          EXPECT_EQ(test.logs[ids[i]].usage.cached_tokens, static_cast<int64_t>((requests[i].prompt_tokens.size() - 1) / 32 * 32));
        }
      }
      EXPECT_EQ(test.num_used_blocks(), 0);
    }
    EXPECT_GE(test.engine->metrics().kv_disk->num_read, 3 * 12);  // of a window of 17, a block for each prompt and round
    EXPECT_EQ(test.engine->metrics().kv_disk->num_dropped, 0);
  }
}

// Two that cannot both grow to their end: who makes room for the other comes back from the disk and not from its tokens.
TEST(KvDiskEngine, APreemptedSequenceComesBackFromTheDisk) {
  const FakeNetwork network({std::nullopt});
  std::mt19937 random(6);
  std::vector<GenerationRequest> requests(2);
  for (GenerationRequest& request : requests) {
    request.prompt_tokens = random_tokens(random, 130);
    request.max_tokens = 160;
  }
  int64_t rows_without = 0;
  for (const bool has_disk : {false, true}) {
    const TemporaryDirectory folder;
    EngineOptions options = has_disk ? with_disk(folder.file("kv")) : EngineOptions{};
    options.kv_bytes = fake_kv_bytes(12);  // of 2 x 10
    TestEngine test(network, options, nullptr, 300);
    const std::vector<RequestId> ids = {test.add(requests[0]), test.add(requests[1])};
    test.run();
    for (std::size_t i = 0; i < ids.size(); ++i) expect_reference(network, requests[i], test.logs[ids[i]]);
    EXPECT_GT(test.engine->metrics().num_preemptions, 0);
    if (!has_disk) {
      rows_without = test.executor.num_rows_computed();
    } else {
      EXPECT_GT(test.engine->metrics().kv_disk->num_read, 0);
      EXPECT_LT(test.executor.num_rows_computed(), rows_without);
    }
  }
}

TEST(KvDiskEngine, ClientsShareNothingWhateverTheirOrder) {
  const TemporaryDirectory folder;
  const FakeNetwork network({std::nullopt});
  std::mt19937 random(6);
  GenerationRequest request;
  request.prompt_tokens = random_tokens(random, 100);
  request.max_tokens = 2;
  const auto cached_tokens = [&](std::vector<std::string> salts, int32_t client) {
    EngineOptions options = with_disk(folder.file("kv"));
    options.client_salts = std::move(salts);
    TestEngine test(network, options);
    request.client = client;
    const RequestId id = test.add(request);
    test.run();
    return test.logs[id].usage.cached_tokens;
  };
  EXPECT_EQ(cached_tokens({"a", "b"}, 0), 0);
  EXPECT_EQ(cached_tokens({"b", "a"}, 0), 0);
  EXPECT_EQ(cached_tokens({"c", "b", "a"}, 2), 96);
  EXPECT_EQ(cached_tokens({}, 0), 0);
  EXPECT_EQ(cached_tokens({}, 2), 0);
  EXPECT_EQ(cached_tokens({}, 2), 96);
}

TEST(KvDiskEngine, WhatFailedIsNotKept) {
  const TemporaryDirectory folder;
  std::mt19937 random(7);
  GenerationRequest request;
  request.prompt_tokens = random_tokens(random, 100);
  request.max_tokens = 2;
  TestEngine test(FakeNetwork({std::nullopt}), with_disk(folder.file("kv")));
  test.executor.poison_token = request.prompt_tokens.back();
  const RequestId id = test.add(request);
  test.run();
  EXPECT_EQ(test.logs[id].sequences[0].reason, FinishReason::kError);
  test.executor.poison_token.reset();
  const RequestId again = test.add(request);
  test.run();
  EXPECT_EQ(test.logs[again].usage.cached_tokens, 0);
}

TEST(KvDiskEngine, AFolderThatCannotBeUsedDisturbsNoRequest) {
  std::vector<std::string> warnings;
  const FakeNetwork network({std::nullopt});
  TestEngine test(network, with_disk("/proc/no such place/kv", &warnings));
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("/proc/no such place/kv"), std::string::npos);
  GenerationRequest request;
  request.prompt_tokens = {1, 2, 3};
  request.max_tokens = 3;
  const RequestId id = test.add(request);
  test.run();
  expect_reference(network, request, test.logs[id]);
  EXPECT_FALSE(test.engine->metrics().kv_disk.has_value());
}

TEST(KvDiskEngine, WhatCannotBeKeptIsRefused) {
  FakeExecutor executor(FakeNetwork({std::nullopt}));
  EngineOptions options = with_disk("/nowhere");
  options.prefix_cache = false;
  EXPECT_NE(Engine::create(executor, nullptr, options).status().message().find("kv_disk"), std::string::npos);
  options.prefix_cache = true;
  options.kv_disk.max_bytes = 300;
  EXPECT_NE(Engine::create(executor, nullptr, options).status().message().find("300 bytes"), std::string::npos);
  FakeExecutor without(FakeNetwork(std::vector<std::optional<int64_t>>{}));
  EXPECT_EQ(Engine::create(without, nullptr, with_disk("/nowhere")).status().code(), StatusCode::kUnsupported);
}

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;  // of the likeliest at each place: equal numbers, so equal bits of logits
  int64_t cached_tokens = 0;
};

Answer answer(LoadedModel& model, KvDType kv_dtype, const std::string& folder, const std::vector<int32_t>& prompt) {
  const auto executor = model.make_executor(GemmPath::kFast, kv_dtype, 512).value();
  EngineOptions options = with_disk(folder);
  options.kv_bytes = int64_t{16} << 20;
  options.kv_disk.fingerprint = model.kv_fingerprint(*executor);
  if (folder.empty()) options.kv_disk = {};
  auto engine = Engine::create(*executor, nullptr, options);
  MR_CHECK(engine.is_ok(), engine.status().message());
  GenerationRequest request;
  request.prompt_tokens = prompt;
  request.max_tokens = 24;
  request.ignore_eos = true;
  request.sampling.temperature = 0;
  request.sampling.num_logprobs = 5;
  Answer answer;
  const auto added = (*engine)->add(request, [&](OutputDelta& delta) {
    answer.tokens.insert(answer.tokens.end(), delta.token_ids.begin(), delta.token_ids.end());
    for (const TokenLogprob& token : delta.logprobs) {
      for (const auto& [id, logprob] : token.top_logprobs) answer.logprobs.push_back(logprob);
    }
    answer.cached_tokens = delta.usage.cached_tokens;
  });
  MR_CHECK(added.is_ok(), added.status().message());
  while ((*engine)->step()) {
  }
  return answer;
}

// Attention with and without windows, latent attention, experts, convolutions and state spaces; every type of keys and values.
TEST(KvDiskEngine, ModelsSayTheSameBitForBitAfterARestart) {
  for (const char* name : {"llama", "gemma3_text", "deepseek_v3", "qwen3_moe", "lfm2", "mamba2", "gpt_oss"}) {
    auto model = LoadedModel::load((source_dir() / "tests/golden/models" / name).string(), {.num_threads = 2});
    ASSERT_TRUE(model.is_ok()) << model.status().message();
    std::mt19937 random(8);
    const std::vector<int32_t> prompt = random_tokens(random, 100, static_cast<int32_t>((*model)->network().vocab_size));
    const TemporaryDirectory folder;
    for (const KvDType kv_dtype : kAllKvDTypes) {
      SCOPED_TRACE(fmt::format("{} kv {}", name, static_cast<int>(kv_dtype)));
      const Answer plain = answer(**model, kv_dtype, "", prompt);
      const Answer first = answer(**model, kv_dtype, folder.file("kv"), prompt);
      const Answer second = answer(**model, kv_dtype, folder.file("kv"), prompt);
      EXPECT_EQ(first.cached_tokens, 0) << "another type's files were taken for this one's";
      EXPECT_EQ(second.cached_tokens, 96);
      EXPECT_EQ(plain.tokens.size(), 24u);
      EXPECT_EQ(first.tokens, plain.tokens);
      EXPECT_EQ(second.tokens, plain.tokens);
      EXPECT_EQ(first.logprobs, plain.logprobs);
      EXPECT_EQ(second.logprobs, plain.logprobs);
    }
  }
}

}  // namespace
}  // namespace millrace
