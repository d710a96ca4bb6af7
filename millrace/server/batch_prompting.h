#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/server/api_error.h"

// Batch prompting (Cheng, Kasai, Yu 2023, arXiv:2301.08721): several short questions that share instructions in one prompt, and one answer
// that is split again. The instructions are computed once for all of them.
namespace millrace {

// A conversation of which the user's messages at the end are questions of their own; what comes before is common to all.
struct Questions {
  json::array shared;
  std::vector<json::string> texts;

  // The conversations of one question, and of `count` questions from `first` on.
  json::array alone(std::size_t index) const;
  json::array packed(std::size_t first, std::size_t count) const;
};

// How many messages at the end are the user's.
std::size_t count_questions(const json::array& messages);

// Errors: the last message is not the user's, or there are more than 256 questions.
std::optional<ApiError> read_questions(const json::array& messages, Questions& questions);

// What the answer to `count` packed questions says to each: the text after "[i]" at the beginning of a line, to the next such mark. Nothing
// for a question whose mark is missing, there twice or out of order, or that has no text or only the form's; if the answer was cut off (not
// `whole`) nothing for the last one that it reached.
std::vector<std::optional<std::string>> split_answers(std::string_view answer, std::size_t count, bool whole);

// Tokens that the marks of one question may take, beside its answer.
inline constexpr int64_t kMarkTokens = 8;

}  // namespace millrace
