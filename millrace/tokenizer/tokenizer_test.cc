#include "millrace/tokenizer/tokenizer.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <string>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/base/mapped_file.h"
#include "millrace/base/test_data.h"
#include "millrace/base/utf8.h"

namespace millrace {
namespace {

using Ids = std::vector<int32_t>;

Tokenizer load(const std::string& name) {
  const std::string path = (source_dir() / "tests/golden/tokenizers" / name / "tokenizer.json").string();
  return Tokenizer::from_json(read_text_file(path).value(), R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>"})").value();
}

const char* const kTinyTokenizers[] = {"tiny-bpe",     "tiny-gpt2",       "tiny-roberta",  "tiny-spm",
                                       "tiny-unigram", "tiny-unigram-t5", "tiny-wordpiece"};

// A few letters are enough to see what the added tokens do.
std::string small_json(const std::string& added_tokens, const std::string& normalizer = "null") {
  return R"({"added_tokens": [)" + added_tokens + R"(], "normalizer": )" + normalizer +
         R"(, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}, "decoder": {"type": "ByteLevel"},
          "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "<": 2, ">": 3, "s": 4, "Ġ": 5, "/": 6, "ab": 7, "S": 8}, "merges": ["a b"]}})";
}

const std::string kSpecial = R"({"id": 9, "content": "<s>", "special": true, "normalized": false})";

TEST(Tokenizer, SaysWhatItIs) {
  const Tokenizer tokenizer = load("tiny-spm");
  EXPECT_EQ(tokenizer.description(), "BPE, 876 tokens, 3 added");
  EXPECT_EQ(tokenizer.bos_token(), "<s>");
  EXPECT_EQ(tokenizer.bos_token_id(), 1);
  EXPECT_EQ(tokenizer.eos_token_id(), 2);
  EXPECT_TRUE(tokenizer.is_special(2));
  EXPECT_FALSE(tokenizer.is_special(100));
  EXPECT_FALSE(tokenizer.is_special(-1));
  EXPECT_EQ(tokenizer.id_to_token(2), "</s>");
  EXPECT_EQ(tokenizer.id_to_token(1 << 20), "");
  EXPECT_EQ(tokenizer.token_to_id("</s>"), 2);
  EXPECT_EQ(tokenizer.token_to_id("no such token"), std::nullopt);
  EXPECT_EQ(load("tiny-gpt2").description(), "BPE, byte level, 600 tokens, 1 added");
}

// A client that joins the tokens of "logprobs" gets the text: spaces and halves of characters are not lost.
TEST(Tokenizer, TokensByThemselvesJoinToTheText) {
  const std::string text = "Hello world, h\xC3\xA9llo \xF0\x9F\xA6\x99 wide  space\n\xE4\xB8\xAD\xE6\x96\x87 the end";
  for (const char* name : {"tiny-bpe", "tiny-gpt2", "tiny-spm"}) {
    SCOPED_TRACE(name);
    const Tokenizer tokenizer = load(name);
    const Ids ids = tokenizer.encode(text, {.add_special_tokens = false}).value();
    std::string bytes;
    for (const int32_t id : ids) {
      bytes += tokenizer.token_bytes(id);
      EXPECT_EQ(utf8::find_invalid(tokenizer.token_text(id)), std::nullopt);
    }
    // SentencePiece writes a space before the first word, which decoding a text drops again.
    EXPECT_EQ(bytes.starts_with(' ') ? bytes.substr(1) : bytes, text);
  }
  const Tokenizer spm = load("tiny-spm");
  const auto piece = [&](const char* token) { return spm.token_to_id(token).value(); };
  EXPECT_EQ(spm.token_text(piece("\xE2\x96\x81the")), " the");
  EXPECT_EQ(spm.token_bytes(piece("<0xE2>")), "\xE2");
  EXPECT_EQ(spm.token_text(piece("<0xE2>")), "\xEF\xBF\xBD");
  EXPECT_EQ(spm.token_text(piece("</s>")), "</s>");
  EXPECT_EQ(spm.token_text(1 << 20), "");
  EXPECT_EQ(spm.token_bytes(-1), "");
}

// Without a cut each of these would be one token.
TEST(Tokenizer, UnicodeScriptsCutsWhereTheScriptChanges) {
  const std::string json = R"({"pre_tokenizer": {"type": "UnicodeScripts"},
      "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "Apples are ": 1, "りんご 林檎ー": 2, "!": 3, "Да ": 4, "1": 5}}})";
  const Tokenizer tokenizer = Tokenizer::from_json(json, "{}").value();
  EXPECT_EQ(tokenizer.encode("Apples are りんご 林檎ー!Да 1").value(), (Ids{1, 2, 3, 4, 5}));
  EXPECT_EQ(tokenizer.encode("  !").value(), Ids{3}) << "spaces before the first piece are dropped";
  EXPECT_EQ(tokenizer.encode("   ").value(), Ids{});
}

TEST(Tokenizer, InvalidUtf8IsAnErrorWithItsPlace) {
  const Tokenizer tokenizer = load("tiny-bpe");
  for (const std::string bad : {"abc\xff", "abc\xc3", "abc\xed\xa0\x80", "abc\xf5\x80\x80\x80", "abc\xc0\x80"}) {
    const auto ids = tokenizer.encode(bad);
    ASSERT_FALSE(ids.is_ok());
    EXPECT_EQ(ids.status().message(), "the text is not UTF-8 at byte 3");
  }
  EXPECT_EQ(tokenizer.encode("").value(), Ids{});
}

TEST(Tokenizer, PlainRangesMustBeInOrder) {
  const Tokenizer tokenizer = load("tiny-bpe");
  for (const std::vector<TextRange>& ranges : std::vector<std::vector<TextRange>>{{{2, 1}}, {{0, 6}}, {{2, 4}, {3, 5}}, {{3, 4}, {0, 1}}}) {
    EXPECT_FALSE(tokenizer.encode("12345", {.plain_ranges = ranges}).is_ok());
  }
}

TEST(Tokenizer, ControlTokensAreNotFoundInAUsersWords) {
  const Tokenizer tokenizer = Tokenizer::from_json(small_json(kSpecial), "").value();
  const std::string text = "<s>ab<s>ab";  // the template's, then a user's
  EXPECT_EQ(tokenizer.encode(text).value(), (Ids{9, 7, 9, 7}));
  EXPECT_EQ(tokenizer.encode(text, {.plain_ranges = std::vector<TextRange>{{3, 10}}}).value(), (Ids{9, 7, 2, 4, 3, 7}));
  EXPECT_EQ(tokenizer.encode(text, {.plain_ranges = std::vector<TextRange>{{7, 8}}}).value(), (Ids{9, 7, 2, 4, 3, 7}))
      << "half of it is enough";
  EXPECT_EQ(tokenizer.encode(text, {.parse_special = false}).value(), (Ids{2, 4, 3, 7, 2, 4, 3, 7}));
  EXPECT_EQ(tokenizer.encode("<s<s>", {.plain_ranges = std::vector<TextRange>{{0, 2}}}).value(), (Ids{2, 4, 9}))
      << "a user's half token does not hide the template's";
}

// "<S>" becomes "<s>" only after the first search for tokens.
TEST(Tokenizer, ControlTokensAreNotMadeByNormalization) {
  const std::string normalized = R"({"id": 9, "content": "<s>", "special": true, "normalized": true})";
  const Tokenizer tokenizer = Tokenizer::from_json(small_json(normalized, R"({"type": "Lowercase"})"), "").value();
  EXPECT_EQ(tokenizer.encode("<S>ab<S>").value(), (Ids{9, 7, 9}));
  EXPECT_EQ(tokenizer.encode("<S>ab<S>", {.plain_ranges = std::vector<TextRange>{{3, 8}}}).value(), (Ids{9, 7, 2, 4, 3}));
}

// A model may know a control token as a word of its own; a user's text must not become it there either.
TEST(Tokenizer, ControlTokensAreNotMadeByTheModel) {
  const std::string json = R"({"added_tokens": [{"id": 1, "content": "<s>", "special": true, "normalized": false}],
    "normalizer": {"type": "NFKC"}, "pre_tokenizer": null, "decoder": {"type": "Fuse"},
    "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["<s>", 0], ["<", -1], ["s", -1], [">", -1]]}})";
  const Tokenizer tokenizer = Tokenizer::from_json(json, "").value();
  const std::string wide = "＜s＞";
  EXPECT_EQ(tokenizer.encode(wide).value(), (Ids{1})) << "as the reference does";
  EXPECT_EQ(tokenizer.encode(wide, {.parse_special = false}).value(), (Ids{2, 3, 4}));
  const Tokenizer whole = Tokenizer::from_json(R"({"added_tokens": [{"id": 3, "content": "<s>", "special": true, "normalized": false}],
    "model": {"type": "BPE", "ignore_merges": true, "vocab": {"<": 0, "s": 1, ">": 2, "<s>": 3, "<s": 4}, "merges": ["< s", "<s >"]}})",
                                               "")
                              .value();
  EXPECT_EQ(whole.encode("<s>", {.parse_special = false}).value(), (Ids{4, 2}));
}

TEST(Tokenizer, DecodingSkipsSpecialTokensOnRequestAndUnknownIdsAlways) {
  const Tokenizer tokenizer = Tokenizer::from_json(small_json(kSpecial), "").value();
  EXPECT_EQ(tokenizer.decode(Ids{9, 7, 5, 0, 77, -3}, false).value(), "<s>ab a");
  EXPECT_EQ(tokenizer.decode(Ids{9, 7, 5, 0, 77, -3}, true).value(), "ab a");
}

// What the decoder of a SentencePiece vocabulary makes of ids, by its definition: a run of byte tokens is text if all of it is, else it is
// one U+FFFD for each byte. `as_completed` keeps the characters that were complete before the byte that is no text.
std::string spm_text(const Tokenizer& tokenizer, const Ids& ids, bool skip_special, bool as_completed) {
  std::string text, run;
  const auto end_run = [&] {
    const std::size_t invalid = utf8::find_invalid(run).value_or(run.size());
    const std::size_t num_kept = as_completed || invalid == run.size() ? invalid : 0;
    text += run.substr(0, num_kept);
    for (std::size_t i = num_kept; i < run.size(); ++i) text += utf8::kReplacement;
    run.clear();
  };
  for (const int32_t id : ids) {
    if (skip_special && tokenizer.is_special(id)) continue;
    std::string piece(tokenizer.id_to_token(id));
    if (piece.size() == 6 && piece.starts_with("<0x")) {
      run += static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16));
      continue;
    }
    end_run();
    for (std::size_t at; (at = piece.find("▁")) != std::string::npos;) piece.replace(at, 3, " ");
    text += piece;
  }
  end_run();
  return text.starts_with(' ') ? text.substr(1) : text;
}

TEST(DetokenizerStream, ItsPiecesAreTheWholeTextInWholeCharacters) {
  std::mt19937 random(7);
  for (const char* name : kTinyTokenizers) {
    SCOPED_TRACE(name);
    const Tokenizer tokenizer = load(name);
    const bool has_byte_tokens = tokenizer.token_to_id("<0x00>").has_value();
    EXPECT_EQ(has_byte_tokens, std::string(name) == "tiny-spm");
    int num_kept = 0;
    std::uniform_int_distribution<int32_t> any_id(0, static_cast<int32_t>(tokenizer.vocab_size()) - 1);
    for (int round = 0; round < 300; ++round) {
      Ids ids(random() % 40);
      for (int32_t& id : ids) id = any_id(random);
      if (round % 3 == 0) {
        const Ids text = tokenizer.encode("Grüße, 世界! 👩‍👩‍👧 नमस्ते\n").value();
        ids.insert(ids.begin() + static_cast<std::ptrdiff_t>(ids.size() / 2), text.begin(), text.end());
      }
      const bool skip = round % 2 == 0;
      DetokenizerStream stream(tokenizer, skip);
      std::string all;
      for (const int32_t id : ids) {
        const std::string piece = stream.push(id);
        ASSERT_EQ(utf8::find_invalid(piece), std::nullopt);
        all += piece;
      }
      all += stream.finish();
      const std::string whole = tokenizer.decode(ids, skip).value();
      if (has_byte_tokens) {
        ASSERT_EQ(whole, spm_text(tokenizer, ids, skip, false));
        ASSERT_EQ(all, spm_text(tokenizer, ids, skip, true));
        num_kept += all != whole ? 1 : 0;
      } else {
        ASSERT_EQ(all, whole);
      }
    }
    EXPECT_EQ(num_kept > 10, has_byte_tokens) << num_kept << " texts had a run of bytes that began well";
  }
}

// Emoji and Chinese are often nothing but byte tokens: a reader would wait for all of it.
TEST(DetokenizerStream, ByteTokensAreGivenCharacterByCharacter) {
  const Tokenizer tokenizer = load("tiny-spm");
  DetokenizerStream stream(tokenizer, true);
  const auto push = [&](unsigned byte) { return stream.push(tokenizer.token_to_id(fmt::format("<0x{:02X}>", byte)).value()); };
  const auto push_all = [&](std::string_view bytes) {
    std::vector<std::string> pieces;
    for (const char byte : bytes) pieces.push_back(push(static_cast<unsigned char>(byte)));
    return pieces;
  };
  using Pieces = std::vector<std::string>;
  EXPECT_EQ(push_all("你🦙\n"), (Pieces{"", "", "你", "", "", "", "🦙", "\n"}));
  EXPECT_EQ(stream.push(tokenizer.token_to_id("▁the").value()), " the");

  // What was given stays; the run's rest is no text any more, though it would be one by itself.
  EXPECT_EQ(push_all("你\xE4\xBD\xFF"
                     "好"),
            (Pieces{"", "", "你", "", "", "���", "�", "�", "�"}));
  EXPECT_EQ(stream.push(tokenizer.token_to_id("▁the").value()), " the");
  EXPECT_EQ(push_all("好"), (Pieces{"", "", "好"})) << "a new run";
  EXPECT_EQ(push_all("\xF0\x9F\xA6"), (Pieces{"", "", ""}));
  EXPECT_EQ(stream.finish(), "���") << "as the reference, a byte a replacement";
}

TEST(DetokenizerStream, HoldsBackHalfACharacterOnly) {
  const Tokenizer tokenizer = load("tiny-gpt2");
  Ids ids;
  for (const char* piece : {"Ã", "©", "a"}) ids.push_back(tokenizer.token_to_id(piece).value());
  DetokenizerStream stream(tokenizer, true);
  EXPECT_EQ(stream.push(ids[0]), "");
  EXPECT_EQ(stream.push(ids[1]), "é");
  EXPECT_EQ(stream.push(ids[2]), "a");
  EXPECT_EQ(stream.push(ids[0]), "");
  EXPECT_EQ(stream.push(ids[2]),
            "\xEF\xBF\xBD"
            "a");
  EXPECT_EQ(stream.push(ids[0]), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
}

// Quadratic work on 4 MB would take hours; the bound is generous, for a busy machine and for sanitizers.
TEST(Tokenizer, TimeIsLinearForOneRepeatedCharacter) {
  for (const char* name : kTinyTokenizers) {
    const Tokenizer tokenizer = load(name);
    for (const std::string unit : {"a", " ", "\n", "é", "1", "!", "ab ", "\xCC\x81", "<"}) {
      std::string text;
      while (text.size() < (std::size_t{1} << 20)) text += unit;
      const auto begin = std::chrono::steady_clock::now();
      const auto ids = tokenizer.encode(text, {.add_special_tokens = false});
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      ASSERT_TRUE(ids.is_ok()) << name << ": " << ids.status().message();
      EXPECT_LT(seconds, 20.0) << name << " \"" << unit << '"';
    }
  }
}

TEST(Tokenizer, LongAndShortPiecesMergeAlike) {
  // The same word as a short piece and inside a long one: the two algorithms must agree.
  const Tokenizer tokenizer = load("tiny-spm");
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    std::string word;
    while (word.size() < 40) word += "abcdeinorst"[random() % 11];
    // "☃" is in no merge, so the words on both sides of it stand alone.
    std::string text;
    for (int i = 0; i < 5; ++i) text += word + "☃";
    const Ids one = tokenizer.encode("☃" + word + "☃", {.add_special_tokens = false}).value();
    const Ids five = tokenizer.encode("☃" + text, {.add_special_tokens = false}).value();
    const Ids snowman = tokenizer.encode("☃", {.add_special_tokens = false}).value();
    // Every word gives the same ids, so the whole is one word's worth repeated.
    ASSERT_EQ((five.size() - snowman.size()) % 5, 0U);
    const std::size_t period = (five.size() - snowman.size()) / 5;
    ASSERT_EQ(period, one.size() - snowman.size());
    for (std::size_t i = snowman.size() + period; i < five.size(); ++i) ASSERT_EQ(five[i], five[i - period]);
    for (std::size_t i = 0; i < one.size(); ++i) ASSERT_EQ(one[i], five[i]);
  }
}

// As transformers encoded them: bert's template gives the second text another type, xlm-roberta's puts two separators between.
TEST(Tokenizer, PairsAreJoinedAsTheTemplateSays) {
  for (const char* name : {"bert", "bert-rerank", "xlm-roberta"}) {
    const auto directory = source_dir() / "tests/golden/encoders" / name;
    const Tokenizer tokenizer = Tokenizer::from_json(read_text_file((directory / "tokenizer.json").string()).value(), "").value();
    const json::value golden = parse_json(read_text_file((directory / "golden.json").string()).value()).value();
    int num_pairs = 0;
    for (const json::value& result : golden.at("results").as_array()) {
      const auto numbers = [](const json::value& list) {
        Ids ids;
        for (const json::value& id : list.as_array()) ids.push_back(static_cast<int32_t>(id.as_int64()));
        return ids;
      };
      std::optional<std::string> second;
      if (result.at("text_pair").is_string()) second = std::string(std::string_view(result.at("text_pair").as_string())), ++num_pairs;
      const std::string text(std::string_view(result.at("text").as_string()));
      const EncodedInput input = tokenizer.encode_input(text, second).value();
      EXPECT_EQ(input.ids, numbers(result.at("ids"))) << name << ": " << text;
      EXPECT_FALSE(input.truncated);
      const json::value* types = result.as_object().if_contains("token_type_ids");
      if (types != nullptr && types->is_array()) {
        EXPECT_EQ(input.types, numbers(*types)) << name << ": " << text;
      }
    }
    EXPECT_GT(num_pairs, 0) << name;
  }
}

TEST(Tokenizer, TheLongerTextOfAPairIsCut) {
  const auto path = (source_dir() / "tests/golden/encoders/bert/tokenizer.json").string();
  const Tokenizer tokenizer = Tokenizer::from_json(read_text_file(path).value(), "").value();
  const auto lengths = [&](int first, int second, int64_t most) {
    std::string a, b;
    for (int i = 0; i < first; ++i) a += "a ";
    for (int i = 0; i < second; ++i) b += "b ";
    const EncodedInput input = tokenizer.encode_input(a, b, most).value();
    const auto separator = std::find(input.ids.begin(), input.ids.end(), 3);
    EXPECT_EQ(input.truncated, first + second + 3 > most);
    return std::pair(separator - input.ids.begin() - 1, input.ids.end() - separator - 2);
  };
  using Lengths = std::pair<std::ptrdiff_t, std::ptrdiff_t>;
  EXPECT_EQ(lengths(5, 6, 14), Lengths(5, 6));   // fits
  EXPECT_EQ(lengths(3, 20, 13), Lengths(3, 7));  // the short one stays whole
  EXPECT_EQ(lengths(20, 3, 13), Lengths(7, 3));
  EXPECT_EQ(lengths(20, 30, 14), Lengths(5, 6));  // both give way
  EXPECT_EQ(lengths(30, 20, 14), Lengths(6, 5));
  EXPECT_EQ(lengths(9, 9, 3), Lengths(0, 0));
  EXPECT_EQ(tokenizer.encode_input("a a a a", {}, 4)->ids.size(), 4u);
  EXPECT_FALSE(tokenizer.encode_input("a", "b", 2).is_ok()) << "no room for the three tokens of the template";
}

}  // namespace
}  // namespace millrace
