#include "millrace/engine/token_words.h"

#include <gtest/gtest.h>

#include "millrace/engine/byte_tokenizer.h"

namespace millrace {
namespace {

TEST(BadWordTokens, AreSpelledAtTheBeginningAndAfterASpace) {
  const Tokenizer tokenizer = make_byte_tokenizer();
  const std::vector<std::string> words = {"ab", "  c"};
  const auto tokens = bad_word_tokens(tokenizer, words);
  ASSERT_TRUE(tokens.is_ok());
  EXPECT_EQ(*tokens, (std::vector<std::vector<int32_t>>{{'a', 'b'}, {' ', 'a', 'b'}, {'c'}, {' ', 'c'}}));
}

TEST(BadWordTokens, WordsThatCannotBeAreRefused) {
  const Tokenizer tokenizer = make_byte_tokenizer();
  for (const std::string& word : {std::string(""), std::string("   "), std::string("\xFF")}) {
    const auto tokens = bad_word_tokens(tokenizer, std::vector<std::string>{word});
    ASSERT_FALSE(tokens.is_ok());
    EXPECT_NE(tokens.status().message().find("bad_words"), std::string::npos);
  }
}

TEST(DryBreakers, AreTheTokensThatHoldThemAndTheLastOfLongerTexts) {
  DryBreakers breakers(make_byte_tokenizer());
  const auto usual = breakers.ids_of(DryBreakers::default_texts());
  ASSERT_TRUE(usual.is_ok());
  EXPECT_EQ(**usual, (std::vector<int32_t>{'\n', '"', '*', ':'}));
  EXPECT_EQ(**breakers.ids_of({"User>"}), (std::vector<int32_t>{'>'}));
  EXPECT_TRUE((*breakers.ids_of({}))->empty());
  EXPECT_FALSE(breakers.ids_of({"x", ""}).is_ok());
}

TEST(DryBreakers, RememberedListsAreTheSame) {
  DryBreakers breakers(make_byte_tokenizer());
  const DryBreakers::Ids first = *breakers.ids_of({"a"});
  EXPECT_EQ(*breakers.ids_of({"a"}), first);
  for (const char* text : {"b", "c", "d", "e", "f", "g", "h"}) EXPECT_TRUE(breakers.ids_of({text}).is_ok());
  EXPECT_EQ(*breakers.ids_of({"a"}), first) << "used again, so not the oldest";
  EXPECT_TRUE(breakers.ids_of({"i"}).is_ok());
  EXPECT_TRUE(breakers.ids_of({"j"}).is_ok());
  EXPECT_EQ(*breakers.ids_of({"a"}), first);
  EXPECT_EQ(**breakers.ids_of({"b"}), std::vector<int32_t>{'b'});
}

}  // namespace
}  // namespace millrace
