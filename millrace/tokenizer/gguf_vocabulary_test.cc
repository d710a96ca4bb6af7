// Vocabularies inside GGUF files: against the test vectors that llama.cpp ships beside them, against the tokenizer.json of the
// same model, and hostile ones.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <string>

#include "millrace/base/json.h"
#include "millrace/base/mapped_file.h"
#include "millrace/base/test_data.h"
#include "millrace/tokenizer/gguf_test_file.h"
#include "millrace/tokenizer/tokenizer.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

fs::path vocabs_dir() {
  const char* dir = std::getenv("MILLRACE_TEST_VOCABS");
  return dir != nullptr ? dir : "";
}

struct VectorCase {
  const char* name;
  bool refused = false;  // its pre-tokenizer is not one we know
};

class GgufVectors : public testing::TestWithParam<VectorCase> {};

// The .inp file separates texts by a line of its own; the .out file has a line of ids for each.
TEST_P(GgufVectors, TokensEqualLlamaCpps) {
  const fs::path file = vocabs_dir() / (std::string("ggml-vocab-") + GetParam().name + ".gguf");
  GgufVocabulary vocab;
  if (!GgufTestFile(file.string()).read(vocab)) GTEST_SKIP() << file << " is not here (set MILLRACE_TEST_VOCABS)";
  const Result<Tokenizer> tokenizer = Tokenizer::from_gguf(std::move(vocab));
  ASSERT_EQ(tokenizer.is_ok(), !GetParam().refused) << tokenizer.status().message();
  if (GetParam().refused) return;
  const Result<std::string> texts = read_text_file(file.string() + ".inp"), ids = read_text_file(file.string() + ".out");
  if (!texts.is_ok() || !ids.is_ok()) GTEST_SKIP() << "no vectors for " << GetParam().name;
  const std::string separator = "\n__ggml_vocab_test__\n";
  std::istringstream lines(*ids);
  int num_cases = 0;
  for (std::size_t begin = 0; begin < texts->size();) {
    std::size_t end = texts->find(separator, begin);
    if (end == std::string::npos) end = texts->size();
    const std::string text = texts->substr(begin, end - begin);
    begin = end + separator.size();
    std::string line;
    if (!std::getline(lines, line)) break;
    std::istringstream numbers(line);
    std::vector<int32_t> want;
    for (int32_t id; numbers >> id;) want.push_back(id);
    SCOPED_TRACE(fmt::format("case {}: \"{}\"", num_cases++, text));
    const auto got = tokenizer->encode(text, {.add_special_tokens = false});
    ASSERT_TRUE(got.is_ok()) << got.status().message();
    EXPECT_EQ(*got, want);
  }
  EXPECT_GE(num_cases, 20);
}

INSTANTIATE_TEST_SUITE_P(All, GgufVectors,
                         testing::Values(VectorCase{"bert-bge"}, VectorCase{"command-r"}, VectorCase{"deepseek-coder"},
                                         VectorCase{"deepseek-llm"}, VectorCase{"falcon"}, VectorCase{"gpt-2"}, VectorCase{"llama-bpe"},
                                         VectorCase{"llama-spm"}, VectorCase{"mpt"}, VectorCase{"phi-3"}, VectorCase{"qwen2"},
                                         VectorCase{"qwen35"}, VectorCase{"refact"}, VectorCase{"starcoder"}, VectorCase{"gpt-neox"},
                                         VectorCase{"aquila"}, VectorCase{"baichuan"}, VectorCase{"nomic-bert-moe"},
                                         VectorCase{"gemma-4", true}),
                         [](const auto& test) {
                           std::string name = test.param.name;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

// Texts of a golden file.
std::vector<std::string> golden_texts(const std::string& name) {
  const Result<std::string> text = read_text_file((source_dir() / "../shared/golden/tokenizers" / (name + ".json")).string());
  std::vector<std::string> out;
  if (!text.is_ok()) return out;
  const Result<json::value> parsed = parse_json(*text);
  if (!parsed.is_ok()) return out;
  for (const json::value& one : parsed->at("cases").as_array())
    out.emplace_back(one.at("text").as_string().c_str(), one.at("text").as_string().size());
  return out;
}

struct SameCase {
  const char* golden;
  const char* gguf;            // under the vocabularies' directory
  const char* tokenizer_json;  // under shared/, or beside the vocabularies
};

class GgufAndJson : public testing::TestWithParam<SameCase> {};

TEST_P(GgufAndJson, AreOneTokenizer) {
  GgufVocabulary vocab;
  if (!GgufTestFile((vocabs_dir() / GetParam().gguf).string()).read(vocab))
    GTEST_SKIP() << GetParam().gguf << " is not here (set MILLRACE_TEST_VOCABS)";
  Result<std::string> file = read_text_file((source_dir() / "../shared" / GetParam().tokenizer_json).string());
  if (!file.is_ok()) file = read_text_file((vocabs_dir() / GetParam().tokenizer_json).string());
  const std::vector<std::string> texts = golden_texts(GetParam().golden);
  if (!file.is_ok() || texts.empty()) GTEST_SKIP() << "no tokenizer.json or texts for " << GetParam().golden;
  const Result<Tokenizer> from_gguf = Tokenizer::from_gguf(std::move(vocab)), from_json = Tokenizer::from_json(*file, "");
  ASSERT_TRUE(from_gguf.is_ok()) << from_gguf.status().message();
  ASSERT_TRUE(from_json.is_ok()) << from_json.status().message();
  EXPECT_EQ(from_gguf->vocab_size(), from_json->vocab_size());
  for (const std::string& text : texts) {
    SCOPED_TRACE(text.substr(0, 200));
    const auto ids = from_gguf->encode(text);
    ASSERT_TRUE(ids.is_ok());
    EXPECT_EQ(*ids, from_json->encode(text).value());
    EXPECT_EQ(from_gguf->decode(*ids, true).value(), from_json->decode(*ids, true).value());
    EXPECT_EQ(from_gguf->decode(*ids, false).value(), from_json->decode(*ids, false).value());
  }
}

INSTANTIATE_TEST_SUITE_P(All, GgufAndJson,
                         testing::Values(SameCase{"smollm2", "../smollm2-135m-instruct-gguf/SmolLM2-135M-Instruct.Q4_1.gguf",
                                                  "models/smollm2-135m-instruct-gguf/tokenizer.json"},
                                         SameCase{"llama-spm", "ggml-vocab-llama-spm.gguf", "llama-spm/tokenizer.json"},
                                         SameCase{"phi-3", "ggml-vocab-phi-3.gguf", "golden/tokenizers/files/phi-3/tokenizer.json"},
                                         SameCase{"qwen2", "ggml-vocab-qwen2.gguf", "golden/tokenizers/files/qwen2/tokenizer.json"},
                                         SameCase{"falcon", "ggml-vocab-falcon.gguf", "golden/tokenizers/files/falcon/tokenizer.json"},
                                         SameCase{"llama-bpe", "ggml-vocab-llama-bpe.gguf", "llama-bpe/tokenizer.json"},
                                         SameCase{"gemma3", "../gemma3-270m-gguf/gemma-3-270m-q4_k_m.gguf", "../gemma3/tokenizer.json"}),
                         [](const auto& test) {
                           std::string name = test.param.golden;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

GgufVocabulary tiny() {
  GgufVocabulary vocab;
  vocab.model = "gpt2";
  vocab.pre = "gpt-2";
  vocab.tokens = {"<|end|>", "a", "b", "ab"};
  vocab.token_types = {3, 1, 1, 1};
  vocab.merges = {"a b"};
  vocab.eos_token_id = 0;
  return vocab;
}

TEST(GgufVocabulary, ATinyOneWorks) {
  const Result<Tokenizer> tokenizer = Tokenizer::from_gguf(tiny());
  ASSERT_TRUE(tokenizer.is_ok()) << tokenizer.status().message();
  EXPECT_EQ(tokenizer->encode("ab<|end|>ba").value(), (std::vector<int32_t>{3, 0, 2, 1}));
  EXPECT_EQ(tokenizer->eos_token(), "<|end|>");
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{3, 0, 2, 99, -1}, true).value(), "abb");
  EXPECT_EQ(tokenizer->description(), "BPE, byte level, 4 tokens, 1 added, from GGUF (gpt-2)");
}

struct BadCase {
  const char* name;
  void (*spoil)(GgufVocabulary&);
  const char* expected;  // in the error
};

TEST(GgufVocabulary, BadOnesAreErrorsThatNameTheField) {
  const BadCase cases[] = {
      {"model", [](GgufVocabulary& v) { v.model = "rwkv"; }, "rwkv"},
      {"pre", [](GgufVocabulary& v) { v.pre = "no-such-pre"; }, "no-such-pre"},
      {"no tokens", [](GgufVocabulary& v) { v.tokens.clear(); }, "tokenizer.ggml.tokens"},
      {"types", [](GgufVocabulary& v) { v.token_types.pop_back(); }, "tokenizer.ggml.token_type"},
      {"scores", [](GgufVocabulary& v) { v.scores = {1, 2}; }, "tokenizer.ggml.scores"},
      {"score", [](GgufVocabulary& v) { v.scores = {1, 2, std::numeric_limits<float>::quiet_NaN(), 0}; }, "tokenizer.ggml.scores[2]"},
      {"eos", [](GgufVocabulary& v) { v.eos_token_id = 4; }, "eos_token_id is 4"},
      {"bos", [](GgufVocabulary& v) { v.bos_token_id = -1; }, "bos_token_id is -1"},
      {"merge", [](GgufVocabulary& v) { v.merges = {"ab"}; }, "tokenizer.ggml.merges[0]"},
      {"merge outside", [](GgufVocabulary& v) { v.merges = {"a b", "b a"}; }, "merges[1] needs \"ba\""},
      {"bytes", [](GgufVocabulary& v) { v.tokens[2] = "\xff"; }, "tokenizer.ggml.tokens[2] is not UTF-8"},
      {"long", [](GgufVocabulary& v) { v.tokens[2] = std::string(5000, 'x'); }, "tokenizer.ggml.tokens[2]"},
      {"llama without scores", [](GgufVocabulary& v) { v.model = "llama"; }, "tokenizer.ggml.scores"},
      {"bert without unknown", [](GgufVocabulary& v) { v.model = "bert"; }, "unknown_token_id"},
  };
  for (const BadCase& one : cases) {
    GgufVocabulary vocab = tiny();
    one.spoil(vocab);
    const Result<Tokenizer> tokenizer = Tokenizer::from_gguf(std::move(vocab));
    ASSERT_FALSE(tokenizer.is_ok()) << one.name;
    EXPECT_NE(tokenizer.status().message().find(one.expected), std::string::npos) << one.name << ": " << tokenizer.status().message();
  }
}

}  // namespace
}  // namespace millrace
