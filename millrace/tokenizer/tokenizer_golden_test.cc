// Every string of shared/golden/tokenizers against the ids and texts that Hugging Face `tokenizers` gives.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/base/mapped_file.h"
#include "millrace/base/test_data.h"
#include "millrace/tokenizer/tokenizer.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

std::vector<int32_t> read_ids(const json::value& list) {
  std::vector<int32_t> ids;
  for (const json::value& id : list.as_array()) ids.push_back(static_cast<int32_t>(id.as_int64()));
  return ids;
}

std::string read_string(const json::value& text) { return {text.as_string().data(), text.as_string().size()}; }

fs::path models_dir() {
  const char* dir = std::getenv("MILLRACE_TEST_VOCABS");
  return dir != nullptr ? dir : "";
}

// The directory with the golden's tokenizer.json, or empty.
fs::path find_tokenizer(const std::string& name, const std::string& place) {
  const fs::path shared = source_dir() / ".." / "shared";
  for (const fs::path& dir : {source_dir() / "tests/golden/tokenizers" / name, shared / place, models_dir() / name,
                              models_dir() / ".." / name, shared / "models" / (name + "-135m-instruct-gguf")}) {
    if (fs::exists(dir / "tokenizer.json")) return dir;
  }
  return {};
}

class TokenizerGolden : public testing::TestWithParam<std::string> {};

TEST_P(TokenizerGolden, EncodesAndDecodesAsHuggingFace) {
  fs::path golden = source_dir() / "tests/golden/tokenizers" / (GetParam() + ".json");
  if (!fs::exists(golden)) golden = source_dir() / "../shared/golden/tokenizers" / (GetParam() + ".json");
  if (!fs::exists(golden)) GTEST_SKIP() << "no golden for " << GetParam();
  const Result<std::string> text = read_text_file(golden.string());
  ASSERT_TRUE(text.is_ok()) << text.status().message();
  const Result<json::value> parsed = parse_json(*text);
  ASSERT_TRUE(parsed.is_ok()) << parsed.status().message();
  const fs::path dir = find_tokenizer(GetParam(), read_string(parsed->at("tokenizer_json")));
  if (dir.empty()) GTEST_SKIP() << "the tokenizer.json of " << GetParam() << " is not here (set MILLRACE_TEST_VOCABS)";
  const Result<std::string> file = read_text_file((dir / "tokenizer.json").string());
  ASSERT_TRUE(file.is_ok()) << file.status().message();
  const Result<Tokenizer> tokenizer = Tokenizer::from_json(*file, "");
  ASSERT_TRUE(tokenizer.is_ok()) << tokenizer.status().message();

  const bool has_byte_tokens = tokenizer->token_to_id("<0xE2>").has_value();
  int num_cases = 0;
  for (const json::value& one : parsed->at("cases").as_array()) {
    const std::string input = read_string(one.at("text"));
    SCOPED_TRACE(fmt::format("case {}: \"{}\"", num_cases++, input.substr(0, 200)));
    const auto ids = tokenizer->encode(input, {.add_special_tokens = false});
    ASSERT_TRUE(ids.is_ok()) << ids.status().message();
    EXPECT_EQ(*ids, read_ids(one.at("ids")));
    const auto with_special = tokenizer->encode(input);
    ASSERT_TRUE(with_special.is_ok());
    EXPECT_EQ(*with_special, read_ids(one.at("ids_with_special")));
    EXPECT_EQ(tokenizer->decode(read_ids(one.at("ids")), false).value(), read_string(one.at("decoded")));
    EXPECT_EQ(tokenizer->decode(read_ids(one.at("ids_with_special")), true).value(), read_string(one.at("decoded_skip_special")));
    DetokenizerStream stream(*tokenizer, true);
    std::string streamed;
    for (const int32_t id : read_ids(one.at("ids_with_special"))) streamed += stream.push(id);
    // Of a text nothing is left when its last token is there, though it may have been all byte tokens.
    if (has_byte_tokens) {
      EXPECT_EQ(streamed, read_string(one.at("decoded_skip_special")));
    }
    EXPECT_EQ(streamed + stream.finish(), read_string(one.at("decoded_skip_special")));
  }
  EXPECT_GE(num_cases, 100);
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerGolden,
                         testing::Values("all-minilm-l6-v2", "deepseek-v4", "falcon", "gemma3", "gpt-2", "llama-bpe", "llama-spm", "phi-3",
                                         "qwen2", "smollm2", "starcoder", "tiny-bpe", "tiny-gpt2", "tiny-roberta", "tiny-spm",
                                         "tiny-unigram", "tiny-unigram-t5", "tiny-wordpiece"),
                         [](const auto& test) {
                           std::string name = test.param;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

}  // namespace
}  // namespace millrace
