#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "millrace/engine/engine.h"
#include "millrace/engine/fake_executor.h"

// For tests: an engine over the fake executor, and what its requests were given.
namespace millrace {

struct SequenceLog {
  std::vector<int32_t> tokens;
  std::string text;
  std::optional<FinishReason> reason;
  Status error;
};

struct RequestLog {
  std::map<int32_t, SequenceLog> sequences;
  Usage usage;
  bool finished = false;

  std::string text_of(int32_t sequence) { return sequences[sequence].text; }
};

struct TestEngine {
  FakeExecutor executor;
  std::unique_ptr<Engine> engine;
  std::map<RequestId, RequestLog> logs;

  explicit TestEngine(FakeNetwork network, EngineOptions options = {}, const Tokenizer* tokenizer = nullptr, int64_t max_positions = 4096,
                      int64_t rope_short_length = 0)
      : executor(std::move(network), max_positions, rope_short_length) {
    auto made = Engine::create(executor, tokenizer, std::move(options));
    MR_CHECK(made.is_ok(), made.status().message());
    engine = std::move(made).value();
  }

  RequestId add(GenerationRequest request) {
    // The id is known only when add returns; the callback cannot run before, since the test itself steps.
    auto id = std::make_shared<RequestId>(0);
    auto added = engine->add(std::move(request), [this, id](OutputDelta& delta) { record(logs[*id], delta); });
    MR_CHECK(added.is_ok(), added.status().message());
    return *id = *added;
  }

  static void record(RequestLog& log, const OutputDelta& delta) {
    EXPECT_FALSE(log.finished) << "a delta after the last one";
    SequenceLog& sequence = log.sequences[delta.sequence];
    EXPECT_FALSE(sequence.reason.has_value()) << "a delta after the sequence's last one";
    sequence.tokens.insert(sequence.tokens.end(), delta.token_ids.begin(), delta.token_ids.end());
    sequence.text += delta.text;
    sequence.reason = delta.finish_reason;
    sequence.error = delta.error;
    log.usage = delta.usage;
    log.finished = delta.request_finished;
  }

  void run() {
    while (engine->step()) {
    }
  }

  int64_t num_used_blocks() const {
    int64_t used = 0;
    for (const auto& group : engine->metrics().kv_groups) used += group.num_used_blocks;
    return used;
  }
};

inline std::vector<int32_t> random_tokens(std::mt19937& random, std::size_t count, int32_t vocab_size = 61) {
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab_size));
  return tokens;
}

// Bytes of `blocks` blocks of a fake group.
inline int64_t fake_kv_bytes(int64_t blocks) { return blocks * kKvBlockTokens * int64_t{sizeof(uint64_t)}; }

}  // namespace millrace
