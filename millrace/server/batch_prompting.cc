#include "millrace/server/batch_prompting.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace millrace {
namespace {

constexpr std::size_t kQuestionsMax = 256;  // as many as completions take prompts
constexpr std::string_view kPlaceholder = "answer";
constexpr std::string_view kSpace = " \t\r\n";

json::object user_message(std::string_view content) { return {{"role", "user"}, {"content", content}}; }

// The i of "[i]" at the beginning of the line, and what follows; "A[i]", bold marks and a colon after it are how models write it, too.
std::optional<std::size_t> take_mark(std::string_view& line) {
  std::string_view rest = line;
  const auto skip = [&](std::string_view characters) { rest.remove_prefix(std::min(rest.find_first_not_of(characters), rest.size())); };
  skip(" \t*");
  if (rest.starts_with("A[")) rest.remove_prefix(1);
  if (!rest.starts_with('[')) return std::nullopt;
  rest.remove_prefix(1);
  std::size_t number = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), number);
  if (error != std::errc() || end == rest.data() + rest.size() || *end != ']') return std::nullopt;
  rest.remove_prefix(static_cast<std::size_t>(end - rest.data()) + 1);
  skip("*:");
  line = rest;
  return number;
}

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(kSpace);
  return first == std::string_view::npos ? std::string_view{} : text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

}  // namespace

json::array Questions::alone(std::size_t index) const {
  json::array messages = shared;
  messages.push_back(user_message(texts[index]));
  return messages;
}

json::array Questions::packed(std::size_t first, std::size_t count) const {
  if (count == 1) return alone(first);
  std::string content, form;
  for (std::size_t i = 0; i < count; ++i) {
    content += fmt::format("[{}] {}\n", i + 1, std::string_view(texts[first + i]));
    form += fmt::format("\n[{}] {}", i + 1, kPlaceholder);
  }
  content += "\nAnswer each question on a line of its own, in this form:" + form;
  json::array messages = shared;
  messages.push_back(user_message(content));
  return messages;
}

std::size_t count_questions(const json::array& messages) {
  std::size_t first = messages.size();
  while (first > 0 && messages[first - 1].at("role") == "user") --first;
  return messages.size() - first;
}

std::optional<ApiError> read_questions(const json::array& messages, Questions& questions) {
  const std::size_t first = messages.size() - count_questions(messages);
  if (first == messages.size()) {
    return invalid_field(
        "batch_prompting",
        "\"batch_prompting\" takes the user's messages at the end of \"messages\" for questions, and the last is not the user's");
  }
  if (messages.size() - first > kQuestionsMax) {
    return invalid_field("messages",
                         fmt::format("\"messages\" ends with {} questions, expected at most {}", messages.size() - first, kQuestionsMax));
  }
  questions.shared = json::array(messages.begin(), messages.begin() + static_cast<std::ptrdiff_t>(first));
  for (std::size_t i = first; i < messages.size(); ++i) questions.texts.push_back(messages[i].at("content").as_string());
  return std::nullopt;
}

std::vector<std::optional<std::string>> split_answers(std::string_view answer, std::size_t count, bool whole) {
  std::vector<std::optional<std::string>> answers(count);
  std::vector<std::size_t> times(count, 0);
  std::size_t open = count, last = 0;  // the question whose text goes on, if any; the last mark in order
  bool ordered = true;
  while (!answer.empty()) {
    const std::size_t end = std::min(answer.find('\n'), answer.size());
    std::string_view line = answer.substr(0, end);
    answer.remove_prefix(std::min(end + 1, answer.size()));
    if (const auto mark = take_mark(line); mark && *mark >= 1 && *mark <= count) {
      ordered = ordered && *mark > last;
      last = open = *mark;
      --open;
      ++times[open];
      answers[open].emplace();
    }
    if (open == count) continue;  // before the first mark
    *answers[open] += line;
    *answers[open] += '\n';
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (!answers[i]) continue;
    answers[i] = std::string(trimmed(*answers[i]));
    if (!ordered || times[i] != 1 || answers[i]->empty() || *answers[i] == kPlaceholder || (!whole && i == open)) answers[i].reset();
  }
  return answers;
}

}  // namespace millrace
