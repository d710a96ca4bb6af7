#include "millrace/quality/logits_file.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <random>

#include "millrace/quality/hash_executor.h"

namespace millrace {
namespace {

constexpr int64_t kVocabSize = 37;  // odd: the 16-bit rows are padded

class LogitsFileTest : public testing::TestWithParam<LogitsFormat> {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("millrace_logits_" + std::to_string(getpid()));
    std::filesystem::create_directory(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string path(const char* name) const { return (folder_ / name).string(); }

  // A file with one row of logits for each scored row of the text; gives its bytes.
  std::string write(const std::string& to, const TextWindows& text) {
    auto writer = LogitsWriter::create(to, GetParam(), text, kVocabSize);
    EXPECT_TRUE(writer.is_ok()) << writer.status().message();
    std::vector<std::byte> bytes(static_cast<std::size_t>(writer->row_bytes()));
    for (int64_t row = 0; row < text.num_scored(); ++row) {
      writer->encode(logits_of(row), bytes);
      EXPECT_TRUE(writer->write(bytes).is_ok());
    }
    EXPECT_TRUE(writer->finish().is_ok());
    std::ifstream in(to, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  // The second half of the rows has logits much further apart than 16.
  static std::vector<float> logits_of(int64_t row) {
    std::vector<float> logits = HashExecutor(kVocabSize).logits_after(std::array{static_cast<int32_t>(row)});
    if (row % 2 == 1) {
      for (float& logit : logits) logit *= 5;
    }
    return logits;
  }

  static TextWindows text() { return std::move(cut_windows(some_tokens(33, kVocabSize), 5, 10, std::nullopt)).value(); }
  void spoil(const std::string& bytes, std::size_t at, int32_t value, const std::string& message) {
    std::string changed = bytes;
    std::memcpy(changed.data() + at, &value, sizeof value);
    store(path("spoiled"), changed);
    const auto file = LogitsFile::open(path("spoiled"));
    ASSERT_FALSE(file.is_ok()) << at << " = " << value;
    EXPECT_NE(file.status().message().find("spoiled: "), std::string::npos);
    EXPECT_NE(file.status().message().find(message), std::string::npos) << file.status().message();
  }
  static void store(const std::string& to, const std::string& bytes) { std::ofstream(to, std::ios::binary) << bytes; }

  std::filesystem::path folder_;
};

TEST_P(LogitsFileTest, GivesBackWhatWasWritten) {
  const TextWindows written = text();
  write(path("f"), written);
  EXPECT_TRUE(is_logits_file(path("f")));
  const auto file = LogitsFile::open(path("f"));
  ASSERT_TRUE(file.is_ok()) << file.status().message();
  EXPECT_EQ(file->format(), GetParam());
  EXPECT_EQ(file->vocab_size(), kVocabSize);
  ASSERT_EQ(file->text().windows.size(), 3u);
  EXPECT_EQ(file->text().num_scored(), written.num_scored());
  const std::size_t num_tokens = GetParam() == LogitsFormat::kF32 ? 33 : 30;  // llama.cpp's format ends with the last window
  EXPECT_EQ(file->text().tokens,
            std::vector<int32_t>(written.tokens.begin(), written.tokens.begin() + static_cast<std::ptrdiff_t>(num_tokens)));
  EXPECT_EQ(file->text().bos, GetParam() == LogitsFormat::kF32 ? std::optional<int32_t>(5) : std::nullopt);
  std::vector<float> scratch(kVocabSize);
  for (int64_t row = 0; row < written.num_scored(); ++row) {
    const auto read = file->row(row, scratch);
    ASSERT_TRUE(read.is_ok());
    const std::vector<float> logits = logits_of(row);
    if (GetParam() == LogitsFormat::kF32) {
      EXPECT_FALSE(read->log_probs);
      EXPECT_TRUE(std::equal(logits.begin(), logits.end(), read->values.begin()));
      continue;
    }
    EXPECT_TRUE(read->log_probs);
    const float top = *std::max_element(logits.begin(), logits.end());
    for (std::size_t i = 0; i < logits.size(); ++i) {
      // Half a code of at most 16 / 65535, and what is more than 16 below the largest is clamped to that.
      const double want =
          std::max(-negative_log_likelihood(logits, static_cast<int32_t>(i)), -negative_log_likelihood(logits, 0) - logits[0] + top - 16.0);
      EXPECT_NEAR(read->values[i], want, 0.5 * 16 / 65535 + 1e-5);
    }
  }
}

TEST_P(LogitsFileTest, EveryShorterOrLongerFileIsAnError) {
  const std::string bytes = write(path("f"), text());
  for (std::size_t size = 0; size < bytes.size(); size += size < 240 ? 1 : 31) {  // every byte of the header, places in the rows
    store(path("short"), bytes.substr(0, size));
    const auto file = LogitsFile::open(path("short"));
    ASSERT_FALSE(file.is_ok()) << size;
    ASSERT_NE(file.status().message().find("short"), std::string::npos);
    ASSERT_TRUE(size < 8 || file.status().message().find("truncated") != std::string::npos) << file.status().message();
  }
  store(path("long"), bytes + "x");
  EXPECT_NE(LogitsFile::open(path("long")).status().message().find("1 bytes after its 12 rows"), std::string::npos);
  EXPECT_FALSE(LogitsFile::open(path("absent")).is_ok());
  EXPECT_FALSE(is_logits_file(path("absent")));
}

TEST_P(LogitsFileTest, ImpossibleHeadersAreErrors) {
  const std::string bytes = write(path("f"), text());
  const std::size_t vocab = GetParam() == LogitsFormat::kF32 ? 8 : 12, windows = 16, tokens = GetParam() == LogitsFormat::kF32 ? 24 : 20;
  for (const int32_t value : {INT32_MIN, -1, 0}) spoil(bytes, vocab, value, "vocabulary");
  for (const int32_t value : {INT32_MIN, -1, 0}) spoil(bytes, windows, value, "windows");
  for (const int32_t value : {1, 30}) spoil(bytes, vocab, value, "outside its vocabulary");
  spoil(bytes, vocab, INT32_MAX, "truncated");
  spoil(bytes, windows, INT32_MAX, "truncated");
  spoil(bytes, tokens, -3, "token 0 is -3");
  spoil(bytes, tokens + 4, 37, "token 1 is 37");
  spoil(bytes, 0, 0, "no file of logits");
  if (GetParam() == LogitsFormat::kF32) {
    spoil(bytes, 12, INT32_MAX, "truncated");
    spoil(bytes, 12, -1, "-1 tokens");
    spoil(bytes, 20, 40, "BOS token is 40");
    const std::size_t first_window = tokens + 33 * 4;
    for (const int32_t begin : {-1, 24, INT32_MAX}) spoil(bytes, first_window, begin, "window 0");
    for (const int32_t count : {-1, 1, 6, 34, INT32_MAX}) spoil(bytes, first_window + 4, count, "window 0");
    for (const int32_t first_row : {-1, 9, INT32_MAX, INT32_MIN}) spoil(bytes, first_window + 8, first_row, "window 0");
  } else {
    for (const int32_t context : {INT32_MIN, -1, 3}) spoil(bytes, 8, context, "windows of");
    spoil(bytes, 8, INT32_MAX, "truncated");
  }
}

TEST_P(LogitsFileTest, RowsThatAreNoPredictionsAreErrors) {
  std::string bytes = write(path("f"), text());
  const float nan = std::nanf("");
  const std::size_t last_row = bytes.size() - (GetParam() == LogitsFormat::kF32 ? 37 * 4 : 8 + 38 * 2);
  std::memcpy(bytes.data() + last_row, &nan, sizeof nan);
  store(path("nan"), bytes);
  const auto file = LogitsFile::open(path("nan"));
  ASSERT_TRUE(file.is_ok());
  std::vector<float> scratch(kVocabSize);
  EXPECT_TRUE(file->row(10, scratch).is_ok());
  EXPECT_NE(file->row(11, scratch).status().message().find("row 11"), std::string::npos);
}

TEST_P(LogitsFileTest, RandomDamageIsReadOrRefused) {
  const std::string bytes = write(path("f"), text());
  std::mt19937 engine(7);
  std::vector<float> scratch;
  int refused = 0;
  for (int round = 0; round < 500; ++round) {
    std::string changed = bytes;
    for (int i = 0; i < 4; ++i) changed[engine() % std::min<std::size_t>(changed.size(), 400)] = static_cast<char>(engine());
    if (round % 3 == 0) changed.resize(engine() % changed.size());
    store(path("damaged"), changed);
    const auto file = LogitsFile::open(path("damaged"));
    refused += !file.is_ok();
    if (!file.is_ok()) continue;
    scratch.resize(static_cast<std::size_t>(file->vocab_size()));
    for (int64_t row = 0; row < file->text().num_scored(); ++row) {
      const auto read = file->row(row, scratch);
      EXPECT_TRUE(!read.is_ok() || std::all_of(read->values.begin(), read->values.end(), [](float value) { return std::isfinite(value); }));
    }
  }
  EXPECT_GT(refused, 166);
  EXPECT_LT(refused, 500);
}

TEST_P(LogitsFileTest, WhatCannotBeWrittenIsAnError) {
  EXPECT_NE(LogitsWriter::create(path("no/such/folder"), GetParam(), text(), kVocabSize).status().message().find("cannot write"),
            std::string::npos);
  const auto strided = cut_windows(some_tokens(33, kVocabSize), std::nullopt, 10, 5);
  const auto writer = LogitsWriter::create(path("f"), GetParam(), *strided, kVocabSize);
  EXPECT_EQ(writer.is_ok(), GetParam() == LogitsFormat::kF32);
  if (std::filesystem::exists("/dev/full")) {
    auto full = LogitsWriter::create("/dev/full", GetParam(), text(), kVocabSize);
    EXPECT_FALSE(full.is_ok() && full->finish().is_ok());
  }
}

INSTANTIATE_TEST_SUITE_P(BothFormats, LogitsFileTest, testing::Values(LogitsFormat::kF32, LogitsFormat::kLogProbs),
                         [](const auto& instance) { return instance.param == LogitsFormat::kF32 ? "F32" : "LogProbs"; });

TEST(LogitsFormat, HasNames) {
  EXPECT_EQ(*parse_logits_format("f32"), LogitsFormat::kF32);
  EXPECT_EQ(*parse_logits_format("llama.cpp"), LogitsFormat::kLogProbs);
  EXPECT_NE(parse_logits_format("f16").status().message().find("\"f16\""), std::string::npos);
}

}  // namespace
}  // namespace millrace
