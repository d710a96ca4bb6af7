#pragma once

#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "millrace/model/bind_config.h"

namespace millrace {

// One object of a family file at one layer, whose words are read as numbers and choices. Every number is checked against a range
// before anyone allocates by it: configurations come from strangers.
class BindWords {
 public:
  // `words` may be null: then all its words are absent. `place` is for messages.
  BindWords(const BindConfig& config, const json::object* words, std::string place, std::optional<int64_t> layer)
      : config_(&config), words_(words), place_(std::move(place)), layer_(layer) {}

  const json::value* find(std::string_view name) const { return words_ != nullptr ? words_->if_contains(name) : nullptr; }
  BindWords object(std::string_view name) const;  // an object below this one, or of no words
  BindWords object(const json::object& words, std::string_view name) const;
  std::string place(std::string_view name) const;
  std::optional<int64_t> layer() const { return layer_; }

  // The word's value, or that of the expression `otherwise` where the family does not have the word. An absent field is an error.
  Result<int64_t> integer(std::string_view name, std::string_view otherwise, int64_t low, int64_t high) const;
  Result<double> number(std::string_view name, std::string_view otherwise, double low, double high) const;
  Result<bool> flag(std::string_view name, std::string_view otherwise) const;
  Result<std::optional<int64_t>> optional_integer(std::string_view name, std::string_view otherwise, int64_t low, int64_t high) const;
  Result<std::optional<double>> optional_number(std::string_view name, std::string_view otherwise, double low, double high) const;
  Result<std::optional<bool>> optional_flag(std::string_view name) const;
  Result<const json::object*> optional_fields(std::string_view name, std::string_view otherwise) const;  // of the configuration; null: none

  // One of `choices`, by its position: written as it is, or an expression that gives its text.
  Result<int> choice(std::string_view name, std::string_view otherwise, std::span<const std::string_view> choices) const;

 private:
  Result<ExpressionValue> value(std::string_view name, std::string_view otherwise) const;
  Status wrong(std::string_view name, std::string_view otherwise, const ExpressionValue& found, std::string_view expected) const;

  const BindConfig* config_;
  const json::object* words_;
  std::string place_;
  std::optional<int64_t> layer_;
};

}  // namespace millrace
