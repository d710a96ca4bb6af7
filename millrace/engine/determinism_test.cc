// Results do not depend on company (docs/design.md D5): for one build, instruction set and KV dtype a row's logits are the same bits
// alone or among strangers, however the prompt was chunked, after recomputation, beside draft tokens, and for any number of threads.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "millrace/base/test_data.h"
#include "millrace/engine/loaded_model.h"

namespace millrace {
namespace {

// Sequences stepped together through an executor, with block tables that interleave their blocks.
class Batch {
 public:
  // Each sequence begins with `num_prompt_tokens` tokens of a prompt; those that follow count as generated.
  Batch(CpuExecutor& executor, int32_t num_sequences, int64_t max_tokens, int64_t num_prompt_tokens)
      : executor_(executor),
        sequences_(static_cast<std::size_t>(num_sequences)),
        num_prompt_tokens_(static_cast<int32_t>(num_prompt_tokens)) {
    blocks_each_ = (max_tokens + kKvBlockTokens - 1) / kKvBlockTokens;
    const std::vector<int64_t> num_blocks(executor.info().kv_groups.size(), blocks_each_ * num_sequences);
    EXPECT_TRUE(executor.allocate_kv(num_blocks).is_ok());
  }

  // Forgets a sequence's tokens, as preemption does; its blocks keep what they held.
  void forget(int32_t sequence) { sequences_[static_cast<std::size_t>(sequence)] = 0; }

  // One step: `work` has (sequence, its next tokens). Returns the logits after each entry's last token; with `every_row` after every token.
  std::vector<std::vector<float>> step(const std::vector<std::pair<int32_t, std::vector<int32_t>>>& work, bool every_row = false) {
    plan_.clear();
    for (const auto& [sequence, tokens] : work) {
      const auto row = static_cast<int32_t>(plan_.tokens.size());
      plan_.tokens.insert(plan_.tokens.end(), tokens.begin(), tokens.end());
      plan_.sequences.push_back({row, row + static_cast<int32_t>(tokens.size()),
                                 static_cast<int32_t>(sequences_[static_cast<std::size_t>(sequence)]), false, num_prompt_tokens_});
      const auto row_end = static_cast<int32_t>(plan_.tokens.size());
      for (int32_t wanted = every_row ? row : row_end - 1; wanted < row_end; ++wanted) plan_.outputs.push_back({wanted, nullptr});
    }
    plan_.table_begin.push_back(0);
    for (std::size_t g = 0; g < executor_.info().kv_groups.size(); ++g) {
      for (const auto& [sequence, tokens] : work) {
        const int64_t length = sequences_[static_cast<std::size_t>(sequence)] + static_cast<int64_t>(tokens.size());
        for (int64_t block = 0; block * kKvBlockTokens < length; ++block)
          plan_.block_ids.push_back(static_cast<int32_t>(block * static_cast<int64_t>(sequences_.size()) + sequence));
        plan_.table_begin.push_back(static_cast<int32_t>(plan_.block_ids.size()));
      }
    }
    executor_.enqueue(plan_);
    const StepOutput& output = executor_.wait();
    std::vector<std::vector<float>> logits;
    for (std::size_t i = 0; i < plan_.outputs.size(); ++i) {
      const auto row = output.logits_of(static_cast<int64_t>(i), executor_.info().vocab_size);
      logits.emplace_back(row.begin(), row.end());
    }
    for (const auto& [sequence, tokens] : work) sequences_[static_cast<std::size_t>(sequence)] += static_cast<int64_t>(tokens.size());
    return logits;
  }

  // The sequence's last tokens were not the right ones, and others will be computed in their place.
  void take_back(int32_t sequence, int64_t count) { sequences_[static_cast<std::size_t>(sequence)] -= count; }

 private:
  CpuExecutor& executor_;
  std::vector<int64_t> sequences_;  // tokens in KV
  int32_t num_prompt_tokens_;
  int64_t blocks_each_ = 0;
  StepPlan plan_;
};

std::vector<int32_t> random_tokens(std::mt19937& random, int64_t count, int64_t vocab_size) {
  std::vector<int32_t> tokens(static_cast<std::size_t>(count));
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab_size));
  return tokens;
}

std::vector<int32_t> slice(const std::vector<int32_t>& tokens, int64_t begin, int64_t end) {
  return {tokens.begin() + begin, tokens.begin() + end};
}

struct Case {
  std::string model;
  KvDType kv_dtype;
  int64_t prompt_tokens, decode_tokens;
  std::vector<int64_t> chunks;
  std::vector<int> companies, threads;
};

// The subject's logits after its prompt and after each of the following tokens (fixed ones, so that every run is comparable).
using Trace = std::vector<std::vector<float>>;

Trace alone(CpuExecutor& executor, const Case& c, const std::vector<int32_t>& tokens, int64_t chunk) {
  Batch batch(executor, 1, static_cast<int64_t>(tokens.size()), c.prompt_tokens);
  Trace trace;
  std::vector<std::vector<float>> logits;
  for (int64_t begin = 0; begin < c.prompt_tokens; begin += chunk)
    logits = batch.step({{0, slice(tokens, begin, std::min(c.prompt_tokens, begin + chunk))}});
  trace.push_back(logits[0]);
  for (int64_t i = c.prompt_tokens; i < static_cast<int64_t>(tokens.size()); ++i)
    trace.push_back(batch.step({{0, slice(tokens, i, i + 1)}})[0]);
  return trace;
}

// Among strangers that prefill and decode in the same steps; halfway the subject is preempted and recomputed.
Trace among(CpuExecutor& executor, const Case& c, const std::vector<int32_t>& tokens, int num_strangers, bool preempt) {
  std::mt19937 random(static_cast<unsigned>(num_strangers));
  const int64_t vocab_size = executor.info().vocab_size, max_tokens = static_cast<int64_t>(tokens.size());
  const auto subject = static_cast<int32_t>(num_strangers / 2);
  Batch batch(executor, num_strangers + 1, max_tokens, c.prompt_tokens);
  std::vector<int64_t> lengths(static_cast<std::size_t>(num_strangers) + 1, 0);
  const int64_t rows_each = std::max<int64_t>(1, executor.options().max_rows / (num_strangers + 1));
  Trace trace;
  for (int64_t done = 0; done < max_tokens;) {
    std::vector<std::pair<int32_t, std::vector<int32_t>>> work;
    int64_t subject_rows = 0;
    std::size_t subject_entry = 0;
    for (int32_t s = 0; s <= num_strangers; ++s) {
      if (s == subject) {
        subject_rows = done < c.prompt_tokens
                           ? std::min(c.prompt_tokens - done, 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(rows_each)))
                           : 1;
        subject_entry = work.size();
        work.emplace_back(s, slice(tokens, done, done + subject_rows));
        continue;
      }
      auto& length = lengths[static_cast<std::size_t>(s)];
      const int64_t rows = std::min(max_tokens - length, 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(rows_each)));
      if (rows <= 0) continue;
      work.emplace_back(s, random_tokens(random, rows, vocab_size));
      length += rows;
    }
    const auto logits = batch.step(work);
    done += subject_rows;
    if (done >= c.prompt_tokens) trace.push_back(logits[subject_entry]);
    if (preempt && done == c.prompt_tokens + c.decode_tokens / 2) {
      batch.forget(subject);
      const auto again = batch.step({{subject, slice(tokens, 0, std::min<int64_t>(done, executor.options().max_rows))}});
      for (int64_t begin = executor.options().max_rows; begin < done; begin += executor.options().max_rows) {
        batch.step({{subject, slice(tokens, begin, std::min(done, begin + executor.options().max_rows))}});
      }
      preempt = false;
    }
  }
  return trace;
}

// Beside a stranger, each step computes some of the tokens that follow and then some wrong ones, as speculation does.
Trace drafting(CpuExecutor& executor, const Case& c, const std::vector<int32_t>& tokens) {
  constexpr int64_t kDraftsMax = 9;
  std::mt19937 random(11);
  const auto size = static_cast<int64_t>(tokens.size()), vocab_size = executor.info().vocab_size;
  Batch batch(executor, 2, size + kDraftsMax, c.prompt_tokens);
  Trace trace;
  for (int64_t begin = 0; begin < c.prompt_tokens; begin += executor.options().max_rows) {
    const auto logits = batch.step({{1, slice(tokens, begin, std::min(c.prompt_tokens, begin + executor.options().max_rows))}});
    trace.assign(1, logits.back());
  }
  for (int64_t i = c.prompt_tokens; i < size;) {
    const int64_t right = std::min<int64_t>(size - i - 1, static_cast<int64_t>(random() % 4)),
                  wrong = 1 + static_cast<int64_t>(random() % (kDraftsMax - 3));
    std::vector<int32_t> rows = slice(tokens, i, i + 1 + right);
    for (const int32_t token : random_tokens(random, wrong, vocab_size)) rows.push_back(token);
    std::vector<std::pair<int32_t, std::vector<int32_t>>> work = {{1, rows}};
    const bool in_company = i % 2 == 0 && i - c.prompt_tokens + 3 < size;
    if (in_company) work.emplace_back(0, random_tokens(random, 2, vocab_size));
    const auto logits = batch.step(work, /*every_row=*/true);
    trace.insert(trace.end(), logits.begin(), logits.begin() + 1 + right);
    batch.take_back(1, wrong);
    i += 1 + right;
  }
  return trace;
}

void expect_same_bits(const Trace& got, const Trace& want) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    for (std::size_t id = 0; id < got[i].size(); ++id) ASSERT_EQ(got[i][id], want[i][id]) << "token " << i << ", logit " << id;
  }
}

void expect_independent(const Case& c) {
  constexpr int32_t kMaxRows = 256;
  auto model = LoadedModel::load(c.model, {.num_threads = 1});
  ASSERT_TRUE(model.is_ok()) << model.status().message();
  auto executor = (*model)->make_executor(GemmPath::kFast, c.kv_dtype, kMaxRows);
  ASSERT_TRUE(executor.is_ok());
  std::mt19937 random(7);
  const auto tokens = random_tokens(random, c.prompt_tokens + c.decode_tokens, (*model)->network().vocab_size);
  const Trace want = alone(**executor, c, tokens, kMaxRows);
  for (float logit : want.back()) ASSERT_TRUE(std::isfinite(logit));
  for (int64_t chunk : c.chunks) {
    SCOPED_TRACE(fmt::format("chunk {}", chunk));
    expect_same_bits(alone(**executor, c, tokens, chunk), want);
  }
  for (int num_strangers : c.companies) {
    SCOPED_TRACE(fmt::format("{} strangers", num_strangers));
    expect_same_bits(among(**executor, c, tokens, num_strangers, false), want);
  }
  // A state cannot be taken back to before a wrong draft: the engine refuses speculation there.
  if (!(*executor)->info().has_state()) {
    SCOPED_TRACE("drafting");
    expect_same_bits(drafting(**executor, c, tokens), want);
  }
  {
    SCOPED_TRACE("after preemption");
    expect_same_bits(among(**executor, c, tokens, 2, true), want);
  }
  for (int num_threads : c.threads) {
    SCOPED_TRACE(fmt::format("{} threads", num_threads));
    auto threaded = LoadedModel::load(c.model, {.num_threads = num_threads});
    ASSERT_TRUE(threaded.is_ok());
    auto other = (*threaded)->make_executor(GemmPath::kFast, c.kv_dtype, kMaxRows);
    ASSERT_TRUE(other.is_ok());
    expect_same_bits(alone(**other, c, tokens, kMaxRows), want);
    expect_same_bits(among(**other, c, tokens, 3, false), want);
  }
}

TEST(Determinism, TinyModelsComputeTheSameBitsInAnyCompany) {
  for (const auto& entry : std::filesystem::directory_iterator(source_dir() / "tests/golden/models")) {
    if (!std::filesystem::exists(entry.path() / "golden.json")) continue;
    for (KvDType kv_dtype : kAllKvDTypes) {
      SCOPED_TRACE(fmt::format("{} kv {}", entry.path().filename().string(), static_cast<int>(kv_dtype)));
      expect_independent({entry.path().string(), kv_dtype, 75, 6, {1, 7, 32, 33}, {1, 5, 32}, {2, 3}});
    }
  }
}

TEST(Determinism, TheDemoModelComputesTheSameBitsInAnyCompany) {
  const char* model = std::getenv("MILLRACE_DEMO_MODEL");
  if (model == nullptr) GTEST_SKIP() << "MILLRACE_DEMO_MODEL names no model; ./run fetches it";
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "takes too long under a sanitizer; the tiny models take the same paths";
#endif
  for (KvDType kv_dtype : kAllKvDTypes) {
    SCOPED_TRACE(static_cast<int>(kv_dtype));
    // The largest company once: 42,000 tokens of strangers are most of this test's time.
    const std::vector<int> companies = kv_dtype == KvDType::kBf16 ? std::vector<int>{1, 32} : std::vector<int>{3};
    expect_independent({model, kv_dtype, 1300, 4, {97, 200}, companies, {2, 3}});
  }
}

}  // namespace
}  // namespace millrace
