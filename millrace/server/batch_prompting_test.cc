#include "millrace/server/batch_prompting.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace millrace {
namespace {

using testing::ElementsAre;
using testing::Optional;

constexpr auto kNone = std::nullopt;

std::string content(const json::array& messages) { return std::string(messages.back().at("content").as_string()); }

TEST(BatchPrompting, TheUsersLastMessagesAreQuestions) {
  const auto messages = json::parse(R"([{"role":"system","content":"Be brief."},{"role":"user","content":"Example?"},
    {"role":"assistant","content":"Yes."},{"role":"user","content":"One?"},{"role":"user","content":"Two?"},{"role":"user","content":"Three?"}])")
                            .as_array();
  Questions questions;
  ASSERT_FALSE(read_questions(messages, questions));
  EXPECT_EQ(questions.shared.size(), 3u);
  ASSERT_EQ(questions.texts.size(), 3u);
  EXPECT_EQ(questions.alone(1), json::array(json::parse(R"([{"role":"system","content":"Be brief."},{"role":"user","content":"Example?"},
    {"role":"assistant","content":"Yes."},{"role":"user","content":"Two?"}])")
                                                .as_array()));
  EXPECT_EQ(questions.packed(2, 1), questions.alone(2));
  const json::array packed = questions.packed(1, 2);
  EXPECT_EQ(packed.size(), 4u);
  EXPECT_EQ(content(packed), "[1] Two?\n[2] Three?\n\nAnswer each question on a line of its own, in this form:\n[1] answer\n[2] answer");
}

TEST(BatchPrompting, AnAnswerAtTheEndIsNoQuestion) {
  Questions questions;
  const auto error =
      read_questions(json::parse(R"([{"role":"user","content":"a"},{"role":"assistant","content":"b"}])").as_array(), questions);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->param, "batch_prompting");
}

TEST(BatchPrompting, AnswersAreSplitAtTheirMarks) {
  EXPECT_THAT(split_answers("[1] Paris\n[2] Rome", 2, true), ElementsAre(Optional(std::string("Paris")), Optional(std::string("Rome"))));
  EXPECT_THAT(split_answers("Sure:\n\n  **[1]:** Paris,\nin France\n\nA[2]: Rome [3]\n", 2, true),
              ElementsAre(Optional(std::string("Paris,\nin France")), Optional(std::string("Rome [3]"))));
}

TEST(BatchPrompting, WhatIsNotThereOnceAndInOrderIsNoAnswer) {
  EXPECT_THAT(split_answers("", 2, true), ElementsAre(kNone, kNone));
  EXPECT_THAT(split_answers("Paris\nRome", 2, true), ElementsAre(kNone, kNone));
  EXPECT_THAT(split_answers("[1] Paris\n[2]\n", 2, true), ElementsAre(Optional(std::string("Paris")), kNone));
  EXPECT_THAT(split_answers("[1] Paris\n[3] Oslo", 3, true),
              ElementsAre(Optional(std::string("Paris")), kNone, Optional(std::string("Oslo"))));
  EXPECT_THAT(split_answers("[1] answer\n[2] Rome", 2, true), ElementsAre(kNone, Optional(std::string("Rome"))));
  EXPECT_THAT(split_answers("[2] Rome\n[1] Paris", 2, true), ElementsAre(kNone, kNone));
  EXPECT_THAT(split_answers("[1] Paris\n[1] London\n[2] Rome", 2, true), ElementsAre(kNone, kNone));
  EXPECT_THAT(split_answers("[0] a\n[3] b\n[99999999999999999999] c\n[-1] d\n[1", 2, true), ElementsAre(kNone, kNone));
}

TEST(BatchPrompting, ACutAnswerLacksItsLast) {
  EXPECT_THAT(split_answers("[1] Paris\n[2] Ro", 3, false), ElementsAre(Optional(std::string("Paris")), kNone, kNone));
}

}  // namespace
}  // namespace millrace
