// Hostile and broken tokenizer.json files: each is an error that names the field, and none crashes.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "millrace/base/mapped_file.h"
#include "millrace/base/test_data.h"
#include "millrace/tokenizer/tokenizer.h"

namespace millrace {
namespace {

std::string with(const std::string& field, const std::string& value) {
  std::string out = "{";
  const std::pair<const char*, const char*> fields[] = {
      {"normalizer", "null"},     {"pre_tokenizer", "null"},
      {"post_processor", "null"}, {"decoder", "null"},
      {"added_tokens", "[]"},     {"model", R"({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]})"}};
  for (const auto& [name, usual] : fields)
    out += fmt::format("{}\"{}\": {}", out.size() > 1 ? ", " : "", name, field == name ? value : usual);
  return out + "}";
}

std::string repeat(const std::string& unit, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += unit;
  return out;
}

std::string bpe(const std::string& vocab, const std::string& rest) { return R"({"type": "BPE", "vocab": )" + vocab + rest + "}"; }

TEST(TokenizerJson, TheUsualOneLoads) {
  const auto tokenizer = Tokenizer::from_json(with("", ""), "");
  ASSERT_TRUE(tokenizer.is_ok()) << tokenizer.status().message();
  EXPECT_EQ(tokenizer->encode("abba").value(), (std::vector<int32_t>{2, 1, 0}));
}

TEST(TokenizerJson, BadFilesAreErrorsThatNameTheField) {
  const std::string deep = repeat(R"({"type": "Sequence", "normalizers": [)", 30) + repeat("]}", 30);
  const std::string deep_pre = repeat(R"({"type": "Sequence", "pretokenizers": [)", 30) + repeat("]}", 30);
  const std::string deep_decoder = repeat(R"({"type": "Sequence", "decoders": [)", 30) + repeat("]}", 30);
  const std::string deep_post = repeat(R"({"type": "Sequence", "processors": [)", 30) + repeat("]}", 30);
  const struct {
    std::string json;
    const char* expected;
  } cases[] = {
      {"", "tokenizer.json"},
      {"[1]", "tokenizer.json is an array, expected an object"},
      {"{}", "\"model\" is missing"},
      {repeat("[", 100000), "tokenizer.json"},
      {with("model", "[]"), "model is an array"},
      {with("model", R"({"type": "Mamba"})"), "type \"Mamba\" is unknown"},
      {with("model", R"({"type": "BPE"})"), "\"vocab\" is missing"},
      {with("model", bpe(R"({"a": -1})", R"(, "merges": [])")), "the id of \"a\""},
      {with("model", bpe(R"({"a": 2147483648})", R"(, "merges": [])")), "the id of \"a\""},
      {with("model", bpe(R"({"a": 99999999})", R"(, "merges": [])")), "the id of \"a\""},
      {with("model", bpe(R"({"a": 1.5})", R"(, "merges": [])")), "the id of \"a\""},
      {with("model", bpe(R"({"a": 0, "b": 0})", R"(, "merges": [])")), "two tokens have id 0"},
      {with("model", bpe(R"({"a": 0})", R"(, "merges": ["a b"])")), "\"merges\"[0] needs \"b\""},
      {with("model", bpe(R"({"a": 0, "b": 1})", R"(, "merges": ["a b"])")), "\"merges\"[0] needs \"ab\""},
      {with("model", bpe(R"({"a": 0})", R"(, "merges": ["a b c"])")), "\"merges\"[0] is neither"},
      {with("model", bpe(R"({"a": 0})", R"(, "merges": [["a"]])")), "\"merges\"[0] is neither"},
      {with("model", bpe(R"({"a": 0})", R"(, "merges": 7)")), "\"merges\" is not an array"},
      {with("model", bpe(R"({"a": 0})", R"(, "merges": [], "unk_token": "x")")), "\"unk_token\" is \"x\", which is not in \"vocab\""},
      {with("model", bpe(R"({"a": 0})", R"(, "merges": [], "byte_fallback": "yes")")), "\"byte_fallback\" is a string, expected a boolean"},
      {with("model", R"({"type": "Unigram", "vocab": {}})"), "\"vocab\" is not an array"},
      {with("model", R"({"type": "Unigram", "vocab": [["a"]]})"), "\"vocab\"[0] is not a pair"},
      {with("model", R"({"type": "Unigram", "vocab": [["a", 1e999]]})"), "\"vocab\"[0] is not a pair"},
      {with("model", R"({"type": "Unigram", "vocab": [["a", -1]], "unk_id": 1})"), "\"unk_id\" is out of range"},
      {with("model", R"({"type": "Unigram", "vocab": [], "unk_id": 0})"), "\"unk_id\" is out of range"},
      {with("model", R"({"type": "WordPiece", "vocab": {"a": 0}})"), "\"unk_token\" is \"[UNK]\""},
      {with("model", R"({"type": "WordPiece", "vocab": {"[UNK]": 0}, "max_input_chars_per_word": -1})"),
       "\"max_input_chars_per_word\" is out of range"},
      {with("model", R"({"type": "WordLevel", "vocab": {"a": 0}})"), "\"unk_token\" is \"<unk>\""},
      {with("normalizer", R"({"type": "NFX"})"), "type \"NFX\" is unknown"},
      {with("normalizer", R"("NFC")"), "normalizer is a string"},
      {with("normalizer", deep), "nested deeper than 8"},
      {with("normalizer", R"({"type": "Sequence", "normalizers": [)" + repeat(R"({"type": "NFC"},)", 100) + R"({"type": "NFC"}]})"),
       "101 parts"},
      {with("normalizer", R"({"type": "Prepend"})"), "\"prepend\" is missing"},
      {with("normalizer", R"({"type": "Replace", "pattern": {"Regex": "("}, "content": ""})"), "regex \"(\""},
      {with("normalizer", R"({"type": "Replace", "pattern": "x", "content": ""})"), "\"pattern\" is a string"},
      {with("normalizer", R"({"type": "Precompiled", "precompiled_charsmap": "!!"})"), "not base64"},
      {with("normalizer", R"({"type": "Precompiled", "precompiled_charsmap": "AAA="})"), "shorter than its header"},
      {with("normalizer", R"({"type": "Precompiled", "precompiled_charsmap": "////f0FB"})"), "a trie of 2147483647 bytes"},
      {with("pre_tokenizer", R"({"type": "Nothing"})"), "type \"Nothing\" is unknown"},
      {with("pre_tokenizer", deep_pre), "nested deeper than 8"},
      {with("pre_tokenizer", R"({"type": "Split", "pattern": {"String": "x"}, "behavior": "Shuffled"})"), "\"behavior\" is \"Shuffled\""},
      {with("pre_tokenizer", R"({"type": "Metaspace", "replacement": "ab"})"), "expected one character"},
      {with("pre_tokenizer", R"({"type": "Metaspace", "replacement": "_", "prepend_scheme": "last"})"), "\"prepend_scheme\" is \"last\""},
      {with("pre_tokenizer", R"({"type": "FixedLength", "length": 0})"), "\"length\" is out of range"},
      {with("pre_tokenizer",
            R"({"type": "Sequence", "pretokenizers": [)" + repeat(R"({"type": "ByteLevel"},)", 40) + R"({"type": "ByteLevel"}]})"),
       "41 ByteLevel parts"},
      {with("post_processor", deep_post), "nested deeper than 8"},
      {with("post_processor", R"({"type": "BertProcessing", "sep": ["x"], "cls": ["y", 1]})"), "\"sep\" is not a pair"},
      {with("post_processor", R"({"type": "BertProcessing", "sep": ["x", 999999999], "cls": ["y", 1]})"), "\"sep\" has id 999999999"},
      {with("post_processor", R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}], "special_tokens": {}})"),
       "\"x\" is missing"},
      {with("post_processor", R"({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}, {"Sequence": {"id": "A"}}]})"),
       "more than once"},
      {with("decoder", deep_decoder), "nested deeper than 8"},
      {with("decoder", R"({"type": "Strip", "content": " ", "start": -1})"), "\"start\" is out of range"},
      {with("decoder", R"({"type": "Replace", "pattern": {"String": "a"}, "content": ")" + repeat("a", 1000) + R"("})"),
       "\"content\" has 1000 bytes"},
      {with("added_tokens", "{}"), "added_tokens is not an array"},
      {with("added_tokens", R"([{"id": 3}])"), "added_tokens[0]: \"content\" is missing"},
      {with("added_tokens", R"([{"id": 2147483648, "content": "x"}])"), "added_tokens[0]: \"id\" is out of range"},
      {with("added_tokens", R"([{"id": -1, "content": "x"}])"), "added_tokens[0]: \"id\" is out of range"},
      {with("added_tokens", R"([{"id": 3, "content": ")" + repeat("x", 5000) + R"("}])"), "\"content\" has 5000 bytes"},
  };
  for (const auto& one : cases) {
    const auto tokenizer = Tokenizer::from_json(one.json, "");
    ASSERT_FALSE(tokenizer.is_ok()) << one.json.substr(0, 300);
    EXPECT_NE(tokenizer.status().message().find(one.expected), std::string::npos)
        << "expected: " << one.expected << "\nerror: " << tokenizer.status().message() << "\nof: " << one.json.substr(0, 300);
  }
}

TEST(TokenizerJson, TheConfigIsCheckedToo) {
  EXPECT_NE(Tokenizer::from_json(with("", ""), "{").status().message().find("tokenizer_config.json"), std::string::npos);
  EXPECT_FALSE(Tokenizer::from_json(with("", ""), R"({"bos_token": 7})").is_ok());
  EXPECT_EQ(Tokenizer::from_json(with("", ""), R"({"bos_token": "b", "eos_token": null})").value().bos_token_id(), 1);
}

// Parts that each make the text longer would together fill the memory.
TEST(TokenizerJson, AGrowingTextIsAnError) {
  const std::string bomb = R"({"type": "Sequence", "normalizers": [)" +
                           repeat(R"({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaaaaaa"},)", 20) +
                           R"({"type": "NFC"}]})";
  const auto tokenizer = Tokenizer::from_json(with("normalizer", bomb), "");
  ASSERT_TRUE(tokenizer.is_ok()) << tokenizer.status().message();
  EXPECT_EQ(tokenizer->encode("aaaa").status().code(), StatusCode::kResourceExhausted);
  const std::string decoder_bomb = R"({"type": "Sequence", "decoders": [)" +
                                   repeat(R"({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaaaaaa"},)", 20) +
                                   R"({"type": "Fuse"}]})";
  const auto decoding = Tokenizer::from_json(with("decoder", decoder_bomb), "");
  ASSERT_TRUE(decoding.is_ok());
  EXPECT_LT(decoding->decode(std::vector<int32_t>{0, 0}, false).value().size(), std::size_t{64} << 20);
}

// Bytes of real files changed at random: an error or a tokenizer that works, never a crash.
TEST(TokenizerJson, DamagedFilesNeverCrash) {
  std::mt19937 random(11);
  for (const char* name : {"tiny-bpe", "tiny-spm", "tiny-unigram", "tiny-wordpiece", "tiny-roberta"}) {
    const std::string file = read_text_file((source_dir() / "tests/golden/tokenizers" / name / "tokenizer.json").string()).value();
    int num_loaded = 0;
    for (int round = 0; round < 60; ++round) {
      std::string damaged = file;
      const int num_changes = 1 + static_cast<int>(random() % 3);
      for (int i = 0; i < num_changes; ++i) {
        const std::size_t at = random() % 2 == 0 ? random() % damaged.size() : random() % 3000;
        if (random() % 4 == 0) {
          damaged.erase(at, 1 + random() % 8);
        } else {
          damaged[at] = "\"{}[]:,09-aeЖ \\"[random() % 16];
        }
      }
      if (round % 10 == 9) damaged.resize(random() % damaged.size());
      const auto tokenizer = Tokenizer::from_json(damaged, "");
      if (!tokenizer.is_ok()) continue;
      ++num_loaded;
      const auto ids = tokenizer->encode("Hello <s>wörld</s> 世界 123");
      if (!ids.is_ok()) continue;
      EXPECT_TRUE(tokenizer->decode(*ids, false).is_ok());
    }
    EXPECT_GT(num_loaded, 0) << name;
  }
}

}  // namespace
}  // namespace millrace
