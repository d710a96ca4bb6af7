#include "millrace/quality/evaluate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "millrace/quality/hash_executor.h"

namespace millrace {
namespace {

constexpr int64_t kVocabSize = 61;

TextWindows windows(int64_t num_tokens, int64_t context, std::optional<int64_t> stride, std::optional<int32_t> bos = std::nullopt) {
  return std::move(cut_windows(some_tokens(num_tokens, kVocabSize), bos, context, stride)).value();
}

// The judge: every window from its beginning, prediction by prediction.
std::vector<RowDivergence> judged(const TextWindows& text, const HashExecutor& model, const HashExecutor& reference) {
  std::vector<RowDivergence> rows;
  for (const auto& window : text.windows) {
    std::vector<int32_t> seen;
    for (int64_t row = 0; row < window.count - 1; ++row) {
      seen.push_back(text.input(window, row));
      if (row >= window.first_row)
        rows.push_back(compare_rows({reference.logits_after(seen), false}, model.logits_after(seen), text.target(window, row)));
    }
  }
  return rows;
}

TEST(Evaluate, GivesTheSameHoweverTheStepsAreCut) {
  ThreadPool pool(3);
  for (const auto& text : {windows(330, 100, std::nullopt, 7), windows(333, 40, 13), windows(90, 33, 33, 0), windows(200, 64, 1)}) {
    const auto want = judged(text, HashExecutor(kVocabSize, 1), HashExecutor(kVocabSize, 2));
    for (const int64_t rows_max : {1, 7, 64, 99, 100, 1000}) {
      for (const int64_t outputs_max : {1, 5, 50, 1000}) {
        SCOPED_TRACE(testing::Message() << rows_max << " rows, " << outputs_max << " outputs");
        HashExecutor model(kVocabSize, 1), other(kVocabSize, 2, 3);
        const auto reference = reference_from(other);
        const auto found = evaluate(model, text, pool,
                                    {.rows_max = rows_max, .logits_bytes_max = outputs_max * kVocabSize * 4, .reference = reference.get()});
        ASSERT_TRUE(found.is_ok()) << found.status().message();
        ASSERT_EQ(found->nll.size(), want.size());
        int64_t num_same_top = 0;
        double max_difference = 0;
        for (std::size_t i = 0; i < want.size(); ++i) {
          ASSERT_EQ(found->nll[i], want[i].nll) << i;
          ASSERT_EQ(found->reference_nll[i], want[i].reference_nll) << i;
          ASSERT_EQ(found->kl[i], want[i].kl) << i;
          num_same_top += want[i].same_top;
          max_difference = std::max(max_difference, want[i].max_difference);
        }
        EXPECT_EQ(found->num_same_top, num_same_top);
        EXPECT_EQ(found->max_difference, max_difference);
        EXPECT_FALSE(found->log_prob_difference);
      }
    }
  }
}

TEST(Evaluate, WithoutAReferenceItOnlyScores) {
  ThreadPool pool(2);
  const TextWindows text = windows(330, 100, std::nullopt);
  HashExecutor model(kVocabSize);
  double last_share = 0;
  const auto found = evaluate(model, text, pool, {.rows_max = 64, .on_progress = [&](double share) {
                                                    EXPECT_GT(share, last_share);
                                                    last_share = share;
                                                  }});
  ASSERT_TRUE(found.is_ok());
  EXPECT_EQ(last_share, 1);
  const auto want = judged(text, HashExecutor(kVocabSize), HashExecutor(kVocabSize));
  ASSERT_EQ(found->nll.size(), want.size());
  for (std::size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(found->nll[i], want[i].nll, 1e-12);
  EXPECT_TRUE(found->kl.empty() && found->reference_nll.empty());
}

TEST(Evaluate, AFileIsAsGoodAsTheModelThatWroteIt) {
  ThreadPool pool(2);
  const std::string path = (std::filesystem::temp_directory_path() / ("millrace_evaluate_" + std::to_string(getpid()))).string();
  const TextWindows text = windows(330, 100, std::nullopt, 7);
  const auto want = judged(text, HashExecutor(kVocabSize, 1), HashExecutor(kVocabSize, 2));
  for (const LogitsFormat format : {LogitsFormat::kF32, LogitsFormat::kLogProbs}) {
    HashExecutor other(kVocabSize, 2), model(kVocabSize, 1);
    auto writer = LogitsWriter::create(path, format, text, kVocabSize);
    ASSERT_TRUE(writer.is_ok());
    ASSERT_TRUE(evaluate(other, text, pool, {.rows_max = 37, .writer = &*writer}).is_ok());
    const auto file = LogitsFile::open(path);
    ASSERT_TRUE(file.is_ok()) << file.status().message();
    const auto reference = reference_from(*file);
    TextWindows read = file->text();
    if (format == LogitsFormat::kLogProbs) read.bos = 7;
    const auto found = evaluate(model, read, pool, {.rows_max = 64, .reference = reference.get()});
    ASSERT_TRUE(found.is_ok()) << found.status().message();
    ASSERT_EQ(found->kl.size(), want.size());
    const double tolerance = format == LogitsFormat::kF32 ? 0 : 1.3e-4;  // half a code
    for (std::size_t i = 0; i < want.size(); ++i) {
      EXPECT_NEAR(found->kl[i], want[i].kl, tolerance);
      EXPECT_NEAR(found->reference_nll[i], want[i].reference_nll, tolerance);
      EXPECT_EQ(found->nll[i], want[i].nll);
    }
    EXPECT_EQ(found->log_prob_difference, format == LogitsFormat::kLogProbs);
  }
  std::filesystem::remove(path);
}

TEST(Evaluate, ATextIsAPromptOrGenerated) {
  ThreadPool pool(1);
  for (const bool as_generated : {false, true}) {
    HashExecutor model(kVocabSize), other(kVocabSize);
    const auto reference = reference_from(other);
    ASSERT_TRUE(
        evaluate(model, windows(330, 100, std::nullopt), pool, {.as_generated = as_generated, .reference = reference.get()}).is_ok());
    for (const HashExecutor* executor : {&model, &other}) {
      EXPECT_EQ(executor->num_prompt_tokens_seen, as_generated ? 0 : std::numeric_limits<int32_t>::max());
    }
  }
}

TEST(Evaluate, WhatDoesNotFitIsAnError) {
  ThreadPool pool(2);
  const auto message = [&](HashExecutor model, const TextWindows& text, const EvaluateOptions& options = {}) {
    return evaluate(model, text, pool, options).status().message();
  };
  EXPECT_NE(message(HashExecutor(60), windows(330, 100, std::nullopt)).find("token id 60 is outside the vocabulary [0, 60)"),
            std::string::npos);
  EXPECT_NE(message(HashExecutor(kVocabSize), windows(330, 100, std::nullopt, 61)).find("BOS token's id 61"), std::string::npos);
  EXPECT_NE(message(HashExecutor(kVocabSize), windows(9000, 4097, std::nullopt)).find("longer than the model's context of 4096"),
            std::string::npos);
  HashExecutor poisoned(kVocabSize);
  const TextWindows text = windows(330, 100, std::nullopt);
  poisoned.poison_token = text.tokens[170];
  EXPECT_NE(message(poisoned, text).find("not finite"), std::string::npos);
  const auto broken = reference_from(poisoned);
  EXPECT_NE(message(HashExecutor(kVocabSize), text, {.reference = broken.get()}).find("reference's prediction"), std::string::npos);
  HashExecutor other(62);
  const auto reference = reference_from(other);
  EXPECT_NE(message(HashExecutor(kVocabSize), text, {.reference = reference.get()}).find("predicts 62 tokens, the model 61"),
            std::string::npos);
}

}  // namespace
}  // namespace millrace
