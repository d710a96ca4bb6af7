#include <fmt/format.h>

#include <algorithm>

#include "millrace/tokenizer/jinja/filters.h"
#include "millrace/tokenizer/jinja/parser.h"
#include "millrace/tokenizer/jinja/predicates.h"

namespace millrace::jinja {

ExprRef Parser::parse_expression(bool with_condition) {
  const NestingGuard guard(*this);
  const std::size_t offset = current().offset;
  const std::size_t num_unknown = unknown_names_.size();
  ExprRef expr = parse_or();
  if (!with_condition) return expr;
  while (skip_name("if")) {
    unknown_names_.resize(std::min(num_unknown, unknown_names_.size()));  // what stands before "if" is conditional, too
    const bool outer = conditional_;
    conditional_ = true;
    ExprRef condition = parse_or();
    ExprRef otherwise = skip_name("else") ? parse_expression() : nullptr;
    conditional_ = outer;
    expr = make_expr<ConditionExpr>(offset, expr, condition, otherwise);
  }
  return expr;
}

ExprRef Parser::parse_or() {
  ExprRef first = parse_and();
  if (!current().is_name("or")) return first;
  auto* logic = make_expr<LogicExpr>(first->offset, false);
  logic->parts.push_back(first);
  while (skip_name("or")) logic->parts.push_back(parse_and());
  return logic;
}

ExprRef Parser::parse_and() {
  ExprRef first = parse_not();
  if (!current().is_name("and")) return first;
  auto* logic = make_expr<LogicExpr>(first->offset, true);
  logic->parts.push_back(first);
  while (skip_name("and")) logic->parts.push_back(parse_not());
  return logic;
}

ExprRef Parser::parse_not() {
  if (!current().is_name("not")) return parse_compare();
  const NestingGuard guard(*this);
  const std::size_t offset = take().offset;
  return make_expr<UnaryExpr>(offset, UnaryOp::kNot, parse_not());
}

ExprRef Parser::parse_compare() {
  static constexpr std::pair<std::string_view, CompareOp> kOperators[] = {{"==", CompareOp::kEqual},  {"!=", CompareOp::kNotEqual},
                                                                          {"<", CompareOp::kLess},    {"<=", CompareOp::kLessEqual},
                                                                          {">", CompareOp::kGreater}, {">=", CompareOp::kGreaterEqual}};
  ExprRef first = parse_sum();
  CompareExpr* compare = nullptr;
  for (;;) {
    std::optional<CompareOp> op;
    for (const auto& [text, candidate] : kOperators) {
      if (current().is_operator(text)) op = candidate;
    }
    if (current().is_name("in")) op = CompareOp::kIn;
    if (current().is_name("not") && ahead().is_name("in")) {
      take();
      op = CompareOp::kNotIn;
    }
    if (!op.has_value()) return compare != nullptr ? compare : first;
    if (compare == nullptr) compare = make_expr<CompareExpr>(first->offset, first);
    take();
    compare->rest.emplace_back(*op, parse_sum());
  }
}

ExprRef Parser::parse_chain(ExprRef (Parser::*operand)(), std::initializer_list<std::pair<std::string_view, ArithmeticOp>> operators) {
  ExprRef first = (this->*operand)();
  ArithmeticExpr* chain = nullptr;
  for (;;) {
    std::optional<ArithmeticOp> op;
    for (const auto& [text, candidate] : operators) {
      if (current().is_operator(text)) op = candidate;
    }
    if (!op.has_value()) return chain != nullptr ? chain : first;
    if (chain == nullptr) chain = make_expr<ArithmeticExpr>(first->offset, first);
    const std::size_t offset = take().offset;
    chain->rest.push_back({*op, offset, (this->*operand)()});
  }
}

ExprRef Parser::parse_sum() { return parse_chain(&Parser::parse_concat, {{"+", ArithmeticOp::kAdd}, {"-", ArithmeticOp::kSubtract}}); }

ExprRef Parser::parse_concat() {
  ExprRef first = parse_product();
  if (!current().is_operator("~")) return first;
  auto* concat = make_expr<ConcatExpr>(first->offset);
  concat->parts.push_back(first);
  while (skip_operator("~")) concat->parts.push_back(parse_product());
  return concat;
}

ExprRef Parser::parse_product() {
  return parse_chain(
      &Parser::parse_power,
      {{"*", ArithmeticOp::kMultiply}, {"/", ArithmeticOp::kDivide}, {"//", ArithmeticOp::kFloorDivide}, {"%", ArithmeticOp::kModulo}});
}

ExprRef Parser::parse_power() {
  // jinja2 groups powers from the left, unlike Python.
  ExprRef first = parse_unary(true);
  ArithmeticExpr* chain = nullptr;
  while (current().is_operator("**")) {
    const std::size_t offset = take().offset;
    if (chain == nullptr) chain = make_expr<ArithmeticExpr>(first->offset, first);
    chain->rest.push_back({ArithmeticOp::kPower, offset, parse_unary(true)});
  }
  return chain != nullptr ? chain : first;
}

ExprRef Parser::parse_unary(bool with_filters) {
  ExprRef expr = nullptr;
  if (current().is_operator("-") || current().is_operator("+")) {
    const NestingGuard guard(*this);
    const Token sign = take();
    expr = make_expr<UnaryExpr>(sign.offset, sign.text == "-" ? UnaryOp::kNegate : UnaryOp::kPlus, parse_unary(false));
  } else {
    expr = parse_primary();
  }
  expr = parse_postfix(expr);
  return with_filters ? parse_filters_and_tests(expr) : expr;
}

ExprRef Parser::parse_primary() {
  const Token& token = current();
  const std::size_t offset = token.offset;
  switch (token.kind) {
    case TokenKind::kName: {
      const std::string name = take().text;
      if (name == "true" || name == "True") return make_expr<ConstExpr>(offset, Value(true));
      if (name == "false" || name == "False") return make_expr<ConstExpr>(offset, Value(false));
      if (name == "none" || name == "None") return make_expr<ConstExpr>(offset, Value(None{}));
      return make_name(offset, name);
    }
    case TokenKind::kString: {
      std::string value;
      while (current().kind == TokenKind::kString) value += take().text;
      return make_expr<ConstExpr>(offset, Value(make_text(std::move(value))));
    }
    case TokenKind::kInteger: return make_expr<ConstExpr>(offset, Value(take().integer));
    case TokenKind::kFloat: return make_expr<ConstExpr>(offset, Value(take().number));
    case TokenKind::kOperator:
      if (token.text == "(") {
        take();
        ExprRef expr = parse_tuple(true, true);
        expect_operator(")");
        return expr;
      }
      if (token.text == "[") return parse_list_literal();
      if (token.text == "{") return parse_dict_literal();
      break;
    default: break;
  }
  fail_unexpected();
}

ExprRef Parser::parse_tuple(bool with_condition, bool parenthesized, std::string_view end_name) {
  const std::size_t offset = current().offset;
  const auto at_end = [&] {
    return current().kind == TokenKind::kVariableEnd || current().kind == TokenKind::kBlockEnd || current().is_operator(")") ||
           (!end_name.empty() && current().is_name(end_name));
  };
  std::vector<ExprRef> items;
  bool tuple = false;
  while (!at_end()) {
    items.push_back(parse_expression(with_condition));
    if (!skip_operator(",")) break;
    tuple = true;
  }
  if (!tuple && !items.empty()) return items[0];
  if (items.empty() && !parenthesized) fail_at(offset, "Expected an expression");
  return make_expr<ListExpr>(offset, std::move(items), true);
}

ExprRef Parser::parse_list_literal() {
  const std::size_t offset = take().offset;
  std::vector<ExprRef> items;
  while (!current().is_operator("]")) {
    if (!items.empty()) expect_operator(",");
    if (current().is_operator("]")) break;
    items.push_back(parse_expression());
  }
  take();
  return make_expr<ListExpr>(offset, std::move(items), false);
}

ExprRef Parser::parse_dict_literal() {
  auto* dict = make_expr<DictExpr>(take().offset);
  while (!current().is_operator("}")) {
    if (!dict->entries.empty()) expect_operator(",");
    if (current().is_operator("}")) break;
    ExprRef key = parse_expression();
    expect_operator(":");
    dict->entries.emplace_back(key, parse_expression());
  }
  take();
  return dict;
}

ExprRef Parser::parse_postfix(ExprRef expr) {
  for (;;) {
    if (current().is_operator(".") || current().is_operator("[")) {
      expr = parse_subscript(expr);
    } else if (current().is_operator("(")) {
      const std::size_t offset = current().offset;
      expr = make_expr<CallExpr>(offset, expr, parse_arguments());
    } else {
      return expr;
    }
  }
}

ExprRef Parser::parse_filters_and_tests(ExprRef expr) {
  for (;;) {
    if (current().is_operator("|")) {
      expr = parse_filter_chain(expr, false);
    } else if (current().is_name("is")) {
      expr = parse_test(expr);
    } else if (current().is_operator("(")) {
      const std::size_t offset = current().offset;
      expr = make_expr<CallExpr>(offset, expr, parse_arguments());
    } else {
      return expr;
    }
  }
}

ExprRef Parser::parse_subscript(ExprRef object) {
  const Token token = take();
  if (token.text == ".") {
    const Token attribute = take();
    if (attribute.kind == TokenKind::kName) return make_expr<AttributeExpr>(attribute.offset, object, attribute.text);
    if (attribute.kind != TokenKind::kInteger) fail_at(attribute.offset, "expected name or number");
    return make_expr<ItemExpr>(token.offset, object, make_expr<ConstExpr>(attribute.offset, Value(attribute.integer)));
  }
  std::vector<ExprRef> keys;
  while (!current().is_operator("]")) {
    if (!keys.empty()) expect_operator(",");
    keys.push_back(parse_subscript_key());
  }
  take();
  if (keys.empty()) fail_at(token.offset, "expected a key between the brackets");
  if (keys.size() == 1) return make_expr<ItemExpr>(token.offset, object, keys[0]);
  for (ExprRef key : keys) {
    if (key->kind == ExprKind::kSlice) fail_at(key->offset, "a slice cannot be part of a tuple");
  }
  return make_expr<ItemExpr>(token.offset, object, make_expr<ListExpr>(token.offset, std::move(keys), true));
}

ExprRef Parser::parse_subscript_key() {
  const std::size_t offset = current().offset;
  ExprRef start = nullptr;
  if (!current().is_operator(":")) {
    start = parse_expression();
    if (!current().is_operator(":")) return start;
  }
  const auto at_end = [&] { return current().is_operator("]") || current().is_operator(",") || current().is_operator(":"); };
  auto* slice = make_expr<SliceExpr>(offset);
  slice->start = start;
  take();
  if (!at_end()) slice->stop = parse_expression();
  if (skip_operator(":") && !at_end()) slice->step = parse_expression();
  return slice;
}

Arguments Parser::parse_arguments() {
  const std::size_t offset = current().offset;
  const auto ensure = [&](bool condition) {
    if (!condition) fail_at(offset, "invalid syntax for function call expression");
  };
  expect_operator("(");
  Arguments arguments;
  bool require_comma = false;
  while (!current().is_operator(")")) {
    if (require_comma) {
      expect_operator(",");
      if (current().is_operator(")")) break;
    }
    require_comma = true;
    if (skip_operator("*")) {
      ensure(arguments.all_positional == nullptr && arguments.all_named == nullptr);
      arguments.all_positional = parse_expression();
    } else if (skip_operator("**")) {
      ensure(arguments.all_named == nullptr);
      arguments.all_named = parse_expression();
    } else if (current().kind == TokenKind::kName && ahead().is_operator("=")) {
      ensure(arguments.all_named == nullptr);
      std::string name = take().text;
      take();
      arguments.named.emplace_back(std::move(name), parse_expression());
    } else {
      ensure(arguments.all_positional == nullptr && arguments.all_named == nullptr && arguments.named.empty());
      arguments.positional.push_back(parse_expression());
    }
  }
  take();
  return arguments;
}

void Parser::check_filter_name(const std::string& name, std::size_t offset) {
  if (!conditional_ && find_filter(name) == nullptr) unknown_names_.push_back({offset, fmt::format("No filter named '{}'.", name)});
}

void Parser::check_test_name(const std::string& name, std::size_t offset) {
  if (!conditional_ && find_test(name) == nullptr) unknown_names_.push_back({offset, fmt::format("No test named '{}'.", name)});
}

ExprRef Parser::parse_filter_chain(ExprRef input, bool name_is_next) {
  while (name_is_next || skip_operator("|")) {
    name_is_next = false;
    const std::size_t offset = current().offset;
    std::string name = expect_name();
    while (skip_operator(".")) name += "." + expect_name();
    check_filter_name(name, offset);
    Arguments arguments;
    if (current().is_operator("(")) arguments = parse_arguments();
    input = make_expr<FilterExpr>(offset, input, std::move(name), std::move(arguments));
  }
  return input;
}

ExprRef Parser::parse_test(ExprRef input) {
  const std::size_t is_offset = take().offset;
  const bool negated = skip_name("not");
  const std::size_t offset = current().offset;
  std::string name = expect_name();
  while (skip_operator(".")) name += "." + expect_name();
  check_test_name(name, offset);
  Arguments arguments;
  const Token& next = current();
  const bool starts_operand = next.kind == TokenKind::kName || next.kind == TokenKind::kString || next.kind == TokenKind::kInteger ||
                              next.kind == TokenKind::kFloat || next.is_operator("[") || next.is_operator("{");
  if (next.is_operator("(")) {
    arguments = parse_arguments();
  } else if (starts_operand && !next.is_name("else") && !next.is_name("or") && !next.is_name("and")) {
    if (next.is_name("is")) fail_at(next.offset, "You cannot chain multiple tests with is");
    const NestingGuard guard(*this);
    arguments.positional.push_back(parse_postfix(parse_primary()));
  }
  ExprRef test = make_expr<TestExpr>(offset, input, std::move(name), std::move(arguments));
  return negated ? make_expr<UnaryExpr>(is_offset, UnaryOp::kNot, test) : test;
}

}  // namespace millrace::jinja
