#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/base/status.h"

namespace millrace {

// The expressions of family files: what a number, a condition or a choice is in terms of a checkpoint's configuration. The
// language is closed and total: no loops, no definitions, every evaluation ends with a value or an error.
//
//   choice     = or ["?" choice ":" choice]
//   or         = and {"or" and}                 and = not {"and" not}              not = "not" not | comparison
//   comparison = default [("==" | "!=" | "<" | "<=" | ">" | ">=") default]
//   default    = sum ["??" default]             the right side where the left is absent or none
//   sum        = product {("+" | "-") product}  product = sign {("*" | "/" | "%") sign}     sign = "-" sign | postfix
//   postfix    = primary {"[" choice "]" | "." name}
//   primary    = number | 'text' | "true" | "false" | "none" | field | function "(" choice {"," choice} ")" | "(" choice ")"
//   field      = name {"." name}                "i" is the layer's index; other names are fields of the configuration
//   function   = exists | is_list | contains | has_tensor | min | max | sqrt | floor | log
//
// Values are none, booleans, integers (64 bits, overflow is an error), numbers, texts, and lists and objects of the configuration, which
// can only be indexed. a / b is an integer where it divides exactly, else a number; a % b takes the sign of b. "and", "or", "?:" and "??"
// evaluate only what they need. An absent field is an error everywhere but under "??", exists(), is_list() and contains(); null in a file
// is none.
struct NoneValue {};
struct AbsentValue {
  std::string name;  // what was looked up and is not there
};
using ExpressionValue = std::variant<NoneValue, AbsentValue, bool, int64_t, double, std::string, const json::value*>;

std::string_view kind_name(const ExpressionValue& value);  // "none", "a number", "a list"
std::string to_text(const ExpressionValue& value);         // as it would be written in an expression
ExpressionValue value_of(const json::value& value);        // scalars by value, lists and objects by address

// Where the names of an expression get their meaning.
struct ExpressionScope {
  std::function<Result<ExpressionValue>(std::string_view name)> field;  // dotted name; AbsentValue where there is none
  std::function<bool(std::string_view name)> has_tensor;
  std::optional<int64_t> layer;  // "i"
  int64_t* fuel = nullptr;       // evaluation steps left, shared by all scopes of one binding; none: unlimited
};

class Expression {
 public:
  static constexpr std::size_t kMaxLength = 1000;  // characters
  static constexpr int kMaxDepth = 40;             // nested parentheses, choices, signs

  // Errors quote the text and point at the column.
  static Result<Expression> parse(std::string_view text);

  // Errors say what went wrong and quote the text; the caller adds the file and place.
  Result<ExpressionValue> evaluate(const ExpressionScope& scope) const;

  const std::string& text() const { return text_; }

 private:
  enum class Op {
    kLiteral,
    kField,
    kMember,
    kIndex,
    kNegate,
    kNot,
    kAnd,
    kOr,
    kChoice,
    kDefault,
    kAdd,
    kSubtract,
    kMultiply,
    kDivide,
    kRemainder,
    kEqual,
    kNotEqual,
    kLess,
    kLessEqual,
    kGreater,
    kGreaterEqual,
    kExists,
    kIsList,
    kHasTensor,
    kContains,
    kMin,
    kMax,
    kSqrt,
    kFloor,
    kLog,
  };
  struct Node {
    Op op;
    std::vector<int> operands;  // indices into nodes_
    ExpressionValue literal;
    std::string name;  // of a field or member
  };
  class Parser;

  Result<ExpressionValue> evaluate(int node, const ExpressionScope& scope) const;
  Result<ExpressionValue> evaluate_present(int node, const ExpressionScope& scope) const;  // an absent field is an error
  Result<bool> evaluate_condition(int node, const ExpressionScope& scope) const;
  Result<ExpressionValue> calculate(Op op, const ExpressionValue& a, const ExpressionValue& b) const;
  Result<ExpressionValue> compare(Op op, const ExpressionValue& a, const ExpressionValue& b) const;
  Result<ExpressionValue> member(const ExpressionValue& base, const std::string& name, std::string_view base_text) const;
  Result<ExpressionValue> index(const Node& node, const ExpressionScope& scope) const;
  Status error(std::string message) const;

  std::string text_;
  std::vector<Node> nodes_;
  int root_ = 0;
};

}  // namespace millrace
