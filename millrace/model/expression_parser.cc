#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <utility>

#include "millrace/model/expression.h"

namespace millrace {

namespace {

bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_char(char c) { return is_name_start(c) || is_digit(c); }

}  // namespace

// Recursive descent, one function per line of the grammar (expression.h). Each returns the index of the node it made.
class Expression::Parser {
 public:
  explicit Parser(Expression& out) : out_(out), text_(out.text_) {}

  Status run() {
    MR_ASSIGN_OR_RETURN(out_.root_, choice());
    skip_spaces();
    if (at_ < text_.size()) return fail("expected an operator or the end");
    return Status::ok();
  }

 private:
  using Level = Result<int> (Parser::*)();
  struct Symbol {
    std::string_view text;
    Op op;
  };

  Status fail(std::string_view message) const {
    return Status::invalid_argument(fmt::format("expression \"{}\", column {}: {}", text_, at_ + 1, message));
  }

  void skip_spaces() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
  }

  // Takes `token` if it comes next. A word must not be the beginning of a longer one, nor "?" of "??", "<" of "<=".
  bool take(std::string_view token) {
    skip_spaces();
    const std::string_view rest = text_.substr(at_);
    if (!rest.starts_with(token)) return false;
    const char next = rest.size() > token.size() ? rest[token.size()] : ' ';
    if (is_name_start(token[0]) && is_name_char(next)) return false;
    if (token == "?" && next == '?') return false;
    if ((token == "<" || token == ">") && next == '=') return false;
    at_ += token.size();
    return true;
  }

  int add(Op op, std::vector<int> operands, ExpressionValue literal = NoneValue{}, std::string name = {}) {
    out_.nodes_.push_back({op, std::move(operands), std::move(literal), std::move(name)});
    return static_cast<int>(out_.nodes_.size()) - 1;
  }

  Result<int> choice() {
    if (++depth_ > kMaxDepth) return fail("nested too deeply");
    MR_ASSIGN_OR_RETURN(int result, disjunction());
    if (take("?")) {
      MR_ASSIGN_OR_RETURN(const int yes, choice());
      if (!take(":")) return fail("expected \":\" of \"condition ? value : value\"");
      MR_ASSIGN_OR_RETURN(const int no, choice());
      result = add(Op::kChoice, {result, yes, no});
    }
    --depth_;
    return result;
  }

  Result<int> chain(Level operand, std::initializer_list<Symbol> symbols) {
    MR_ASSIGN_OR_RETURN(int result, (this->*operand)());
    for (bool found = true; found;) {
      found = false;
      for (const Symbol& symbol : symbols) {
        if (!take(symbol.text)) continue;
        MR_ASSIGN_OR_RETURN(const int right, (this->*operand)());
        result = add(symbol.op, {result, right});
        found = true;
        break;
      }
    }
    return result;
  }

  Result<int> disjunction() { return chain(&Parser::conjunction, {{"or", Op::kOr}}); }
  Result<int> conjunction() { return chain(&Parser::negation, {{"and", Op::kAnd}}); }

  Result<int> negation() {
    if (!take("not")) return comparison();
    if (++depth_ > kMaxDepth) return fail("nested too deeply");
    MR_ASSIGN_OR_RETURN(const int operand, negation());
    --depth_;
    return add(Op::kNot, {operand});
  }

  Result<int> comparison() {
    MR_ASSIGN_OR_RETURN(const int left, fallback());
    static constexpr Symbol kSymbols[] = {{"==", Op::kEqual},        {"!=", Op::kNotEqual}, {"<=", Op::kLessEqual},
                                          {">=", Op::kGreaterEqual}, {"<", Op::kLess},      {">", Op::kGreater}};
    for (const Symbol& symbol : kSymbols) {
      if (!take(symbol.text)) continue;
      MR_ASSIGN_OR_RETURN(const int right, fallback());
      return add(symbol.op, {left, right});
    }
    return left;
  }

  Result<int> fallback() {
    MR_ASSIGN_OR_RETURN(const int left, sum());
    if (!take("??")) return left;
    if (++depth_ > kMaxDepth) return fail("nested too deeply");
    MR_ASSIGN_OR_RETURN(const int right, fallback());
    --depth_;
    return add(Op::kDefault, {left, right});
  }

  Result<int> sum() { return chain(&Parser::product, {{"+", Op::kAdd}, {"-", Op::kSubtract}}); }
  Result<int> product() { return chain(&Parser::sign, {{"*", Op::kMultiply}, {"/", Op::kDivide}, {"%", Op::kRemainder}}); }

  Result<int> sign() {
    if (!take("-")) return postfix();
    if (++depth_ > kMaxDepth) return fail("nested too deeply");
    MR_ASSIGN_OR_RETURN(const int operand, sign());
    --depth_;
    return add(Op::kNegate, {operand});
  }

  Result<int> postfix() {
    MR_ASSIGN_OR_RETURN(int result, primary());
    while (true) {
      if (take("[")) {
        MR_ASSIGN_OR_RETURN(const int position, choice());
        if (!take("]")) return fail("expected \"]\"");
        result = add(Op::kIndex, {result, position});
      } else if (take(".")) {
        const std::string name = word();
        if (name.empty()) return fail("expected a name after \".\"");
        result = add(Op::kMember, {result}, NoneValue{}, name);
      } else {
        return result;
      }
    }
  }

  std::string word() {
    const std::size_t start = at_;
    if (at_ < text_.size() && is_name_start(text_[at_])) {
      while (at_ < text_.size() && is_name_char(text_[at_])) ++at_;
    }
    return std::string(text_.substr(start, at_ - start));
  }

  Result<int> primary() {
    skip_spaces();
    if (at_ >= text_.size()) return fail("expected a value, found the end");
    if (take("(")) {
      MR_ASSIGN_OR_RETURN(const int inner, choice());
      if (!take(")")) return fail("expected \")\"");
      return inner;
    }
    if (text_[at_] == '\'') {
      const std::size_t end = text_.find('\'', at_ + 1);
      if (end == std::string_view::npos) return fail("the text has no closing quote");
      const std::string literal(text_.substr(at_ + 1, end - at_ - 1));
      at_ = end + 1;
      return add(Op::kLiteral, {}, literal);
    }
    if (is_digit(text_[at_])) return number();
    const std::string name = word();
    if (name.empty()) return fail("expected a value");
    if (name == "true" || name == "false") return add(Op::kLiteral, {}, name == "true");
    if (name == "none") return add(Op::kLiteral, {}, NoneValue{});
    if (name == "and" || name == "or" || name == "not") return fail(fmt::format("expected a value, found \"{}\"", name));
    if (take("(")) return call(name);
    std::string path = name;
    while (at_ + 1 < text_.size() && text_[at_] == '.' && is_name_start(text_[at_ + 1])) {
      ++at_;
      path += "." + word();
    }
    return add(Op::kField, {}, NoneValue{}, path);
  }

  Result<int> number() {
    const char* begin = text_.data() + at_;
    const char* end = text_.data() + text_.size();
    int64_t integer = 0;
    const auto whole = std::from_chars(begin, end, integer);
    double real = 0;
    const auto floating = std::from_chars(begin, end, real);
    if (floating.ec != std::errc() || !std::isfinite(real)) return fail("the number is too large");
    at_ += static_cast<std::size_t>(floating.ptr - begin);
    if (at_ < text_.size() && is_name_char(text_[at_])) return fail("a number is followed by a letter");
    if (whole.ec == std::errc() && whole.ptr == floating.ptr) return add(Op::kLiteral, {}, integer);
    return add(Op::kLiteral, {}, real);
  }

  Result<int> call(const std::string& name) {
    static constexpr struct {
      std::string_view name;
      Op op;
      std::size_t arguments;
    } kFunctions[] = {{"exists", Op::kExists, 1}, {"is_list", Op::kIsList, 1}, {"has_tensor", Op::kHasTensor, 1},
                      {"sqrt", Op::kSqrt, 1},     {"floor", Op::kFloor, 1},    {"log", Op::kLog, 1},
                      {"min", Op::kMin, 2},       {"max", Op::kMax, 2},        {"contains", Op::kContains, 2}};
    std::vector<int> arguments;
    do {
      MR_ASSIGN_OR_RETURN(const int argument, choice());
      arguments.push_back(argument);
    } while (take(","));
    if (!take(")")) return fail("expected \")\"");
    for (const auto& function : kFunctions) {
      if (function.name != name) continue;
      if (arguments.size() != function.arguments) {
        return fail(fmt::format("{} takes {} argument(s), not {}", name, function.arguments, arguments.size()));
      }
      return add(function.op, std::move(arguments));
    }
    return fail(fmt::format("there is no function \"{}\"", name));
  }

  Expression& out_;
  std::string_view text_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

Result<Expression> Expression::parse(std::string_view text) {
  if (text.size() > kMaxLength) {
    return Status::invalid_argument(fmt::format("an expression of {} characters, at most {} are accepted", text.size(), kMaxLength));
  }
  Expression expression;
  expression.text_ = std::string(text);
  MR_RETURN_IF_ERROR(Parser(expression).run());
  return expression;
}

}  // namespace millrace
