#include "millrace/model/bind_words.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>

namespace millrace {

namespace {

// A whole number, also where a file writes it as 16.0.
std::optional<int64_t> as_integer(const ExpressionValue& value) {
  if (const int64_t* integer = std::get_if<int64_t>(&value)) return *integer;
  const double* real = std::get_if<double>(&value);
  if (real != nullptr && std::abs(*real) < 9e15 && *real == std::floor(*real)) return static_cast<int64_t>(*real);
  return std::nullopt;
}

std::optional<double> as_number(const ExpressionValue& value) {
  if (const int64_t* integer = std::get_if<int64_t>(&value)) return static_cast<double>(*integer);
  if (const double* real = std::get_if<double>(&value)) return *real;
  return std::nullopt;
}

std::string at_layer(std::optional<int64_t> layer) { return layer ? fmt::format(" (layer {})", *layer) : ""; }

bool is_none(const ExpressionValue& value) { return std::holds_alternative<NoneValue>(value); }

}  // namespace

std::string BindWords::place(std::string_view name) const {
  return place_.empty() ? std::string(name) : fmt::format("{}.{}", place_, name);
}

BindWords BindWords::object(std::string_view name) const {
  const json::value* found = find(name);
  return {*config_, found != nullptr ? found->if_object() : nullptr, place(name), layer_};
}

BindWords BindWords::object(const json::object& words, std::string_view name) const { return {*config_, &words, place(name), layer_}; }

Result<ExpressionValue> BindWords::value(std::string_view name, std::string_view otherwise) const {
  const json::value* word = find(name);
  MR_ASSIGN_OR_RETURN(ExpressionValue found,
                      word != nullptr ? config_->evaluate(*word, place(name), layer_) : config_->evaluate(otherwise, place(name), layer_));
  if (const auto* absent = std::get_if<AbsentValue>(&found)) {
    return Status::invalid_argument(
        fmt::format("{}{}: the configuration has no field \"{}\"", config_->where(place(name)), at_layer(layer_), absent->name));
  }
  return found;
}

Status BindWords::wrong(std::string_view name, std::string_view otherwise, const ExpressionValue& found, std::string_view expected) const {
  const json::value* word = find(name);
  const std::string text = word == nullptr     ? fmt::format("\"{}\"", otherwise)
                           : word->is_string() ? fmt::format("\"{}\"", std::string_view(word->get_string()))
                                               : json::serialize(*word);
  return Status::invalid_argument(
      fmt::format("{}{}: {} is {}, expected {}", config_->where(place(name)), at_layer(layer_), text, to_text(found), expected));
}

Result<int64_t> BindWords::integer(std::string_view name, std::string_view otherwise, int64_t low, int64_t high) const {
  MR_ASSIGN_OR_RETURN(const ExpressionValue found, value(name, otherwise));
  const std::optional<int64_t> integer = as_integer(found);
  if (!integer || *integer < low || *integer > high)
    return wrong(name, otherwise, found, fmt::format("an integer from {} to {}", low, high));
  return *integer;
}

Result<double> BindWords::number(std::string_view name, std::string_view otherwise, double low, double high) const {
  MR_ASSIGN_OR_RETURN(const ExpressionValue found, value(name, otherwise));
  const std::optional<double> number = as_number(found);
  if (!number || !(*number >= low && *number <= high))
    return wrong(name, otherwise, found, fmt::format("a number from {} to {}", low, high));
  return *number;
}

Result<bool> BindWords::flag(std::string_view name, std::string_view otherwise) const {
  MR_ASSIGN_OR_RETURN(const ExpressionValue found, value(name, otherwise));
  if (const bool* flag = std::get_if<bool>(&found)) return *flag;
  return wrong(name, otherwise, found, "true or false");
}

Result<std::optional<int64_t>> BindWords::optional_integer(std::string_view name, std::string_view otherwise, int64_t low,
                                                           int64_t high) const {
  MR_ASSIGN_OR_RETURN(const ExpressionValue found, value(name, otherwise));
  if (is_none(found)) return std::optional<int64_t>();
  MR_ASSIGN_OR_RETURN(const int64_t result, integer(name, otherwise, low, high));
  return std::optional<int64_t>(result);
}

Result<std::optional<double>> BindWords::optional_number(std::string_view name, std::string_view otherwise, double low, double high) const {
  MR_ASSIGN_OR_RETURN(const ExpressionValue found, value(name, otherwise));
  if (is_none(found)) return std::optional<double>();
  MR_ASSIGN_OR_RETURN(const double result, number(name, otherwise, low, high));
  return std::optional<double>(result);
}

Result<std::optional<bool>> BindWords::optional_flag(std::string_view name) const {
  MR_ASSIGN_OR_RETURN(const ExpressionValue found, value(name, "none"));
  if (is_none(found)) return std::optional<bool>();
  MR_ASSIGN_OR_RETURN(const bool result, flag(name, "none"));
  return std::optional<bool>(result);
}

Result<const json::object*> BindWords::optional_fields(std::string_view name, std::string_view otherwise) const {
  MR_ASSIGN_OR_RETURN(const ExpressionValue found, value(name, otherwise));
  if (is_none(found)) return static_cast<const json::object*>(nullptr);
  const auto* fields = std::get_if<const json::value*>(&found);
  if (fields == nullptr || !(*fields)->is_object()) return wrong(name, otherwise, found, "an object or none");
  return &(*fields)->get_object();
}

Result<int> BindWords::choice(std::string_view name, std::string_view otherwise, std::span<const std::string_view> choices) const {
  const auto position = [&](std::string_view text) -> std::optional<int> {
    for (std::size_t i = 0; i < choices.size(); ++i) {
      if (choices[i] == text) return static_cast<int>(i);
    }
    return std::nullopt;
  };
  const json::value* word = find(name);
  const std::string_view written = word == nullptr     ? otherwise
                                   : word->is_string() ? std::string_view(word->get_string())
                                                       : std::string_view();
  if (const std::optional<int> found = position(written)) return *found;
  MR_ASSIGN_OR_RETURN(const ExpressionValue found, value(name, otherwise));
  const std::string* text = std::get_if<std::string>(&found);
  const std::optional<int> chosen = text != nullptr ? position(*text) : std::nullopt;
  if (!chosen) return wrong(name, otherwise, found, fmt::format("one of {}", fmt::join(choices, ", ")));
  return *chosen;
}

}  // namespace millrace
