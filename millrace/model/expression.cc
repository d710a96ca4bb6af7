#include "millrace/model/expression.h"

#include <fmt/format.h>

#include <cmath>

namespace millrace {

namespace {

bool is_number(const ExpressionValue& value) { return std::holds_alternative<int64_t>(value) || std::holds_alternative<double>(value); }

double as_double(const ExpressionValue& value) {
  return std::holds_alternative<int64_t>(value) ? static_cast<double>(std::get<int64_t>(value)) : std::get<double>(value);
}

}  // namespace

std::string_view kind_name(const ExpressionValue& value) {
  struct Name {
    std::string_view operator()(const NoneValue&) const { return "none"; }
    std::string_view operator()(const AbsentValue&) const { return "absent"; }
    std::string_view operator()(bool) const { return "a boolean"; }
    std::string_view operator()(int64_t) const { return "an integer"; }
    std::string_view operator()(double) const { return "a number"; }
    std::string_view operator()(const std::string&) const { return "a text"; }
    std::string_view operator()(const json::value* v) const { return v->is_array() ? "a list" : "an object"; }
  };
  return std::visit(Name{}, value);
}

std::string to_text(const ExpressionValue& value) {
  struct Text {
    std::string operator()(const NoneValue&) const { return "none"; }
    std::string operator()(const AbsentValue& v) const { return fmt::format("absent ({})", v.name); }
    std::string operator()(bool v) const { return v ? "true" : "false"; }
    std::string operator()(int64_t v) const { return fmt::format("{}", v); }
    std::string operator()(double v) const { return fmt::format("{}", v); }
    std::string operator()(const std::string& v) const { return fmt::format("'{}'", v); }
    std::string operator()(const json::value* v) const { return v->is_array() ? "a list" : "an object"; }
  };
  return std::visit(Text{}, value);
}

ExpressionValue value_of(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null: return NoneValue{};
    case json::kind::bool_: return value.get_bool();
    case json::kind::int64: return value.get_int64();
    case json::kind::uint64: return static_cast<double>(value.get_uint64());  // beyond int64: only its size matters, for range checks
    case json::kind::double_: return value.get_double();
    case json::kind::string: return std::string(value.get_string());
    default: return &value;
  }
}

Status Expression::error(std::string message) const {
  return Status::invalid_argument(fmt::format("{} (in the expression \"{}\")", message, text_));
}

namespace {

Status out_of_fuel() { return Status::resource_exhausted("the family's expressions take too many steps to evaluate"); }

}  // namespace

Result<ExpressionValue> Expression::evaluate(const ExpressionScope& scope) const { return evaluate(root_, scope); }

Result<ExpressionValue> Expression::evaluate_present(int node, const ExpressionScope& scope) const {
  MR_ASSIGN_OR_RETURN(ExpressionValue value, evaluate(node, scope));
  if (const auto* absent = std::get_if<AbsentValue>(&value)) return error(fmt::format("there is no field \"{}\"", absent->name));
  return value;
}

Result<bool> Expression::evaluate_condition(int node, const ExpressionScope& scope) const {
  MR_ASSIGN_OR_RETURN(const ExpressionValue value, evaluate_present(node, scope));
  if (const bool* condition = std::get_if<bool>(&value)) return *condition;
  return error(fmt::format("a condition must be true or false, but {} is {}", to_text(value), kind_name(value)));
}

Result<ExpressionValue> Expression::evaluate(int index_of_node, const ExpressionScope& scope) const {
  if (scope.fuel != nullptr && --*scope.fuel < 0) return out_of_fuel();
  const Node& node = nodes_[static_cast<std::size_t>(index_of_node)];
  const auto operand = [&](std::size_t n) { return node.operands[n]; };
  switch (node.op) {
    case Op::kLiteral: return node.literal;
    case Op::kField: {
      if (node.name == "i") {
        if (scope.layer) return ExpressionValue(*scope.layer);
        return error("\"i\" is the index of a layer and has no meaning outside of \"layers\"");
      }
      return scope.field(node.name);
    }
    case Op::kMember: {
      MR_ASSIGN_OR_RETURN(const ExpressionValue base, evaluate(operand(0), scope));
      return member(base, node.name, "it");
    }
    case Op::kIndex: return index(node, scope);
    case Op::kNot: {
      MR_ASSIGN_OR_RETURN(const bool value, evaluate_condition(operand(0), scope));
      return ExpressionValue(!value);
    }
    case Op::kAnd:
    case Op::kOr: {
      MR_ASSIGN_OR_RETURN(const bool first, evaluate_condition(operand(0), scope));
      if (first == (node.op == Op::kOr)) return ExpressionValue(first);
      MR_ASSIGN_OR_RETURN(const bool second, evaluate_condition(operand(1), scope));
      return ExpressionValue(second);
    }
    case Op::kChoice: {
      MR_ASSIGN_OR_RETURN(const bool condition, evaluate_condition(operand(0), scope));
      return evaluate(operand(condition ? 1 : 2), scope);
    }
    case Op::kDefault: {
      MR_ASSIGN_OR_RETURN(ExpressionValue value, evaluate(operand(0), scope));
      const bool empty = std::holds_alternative<AbsentValue>(value) || std::holds_alternative<NoneValue>(value);
      return empty ? evaluate(operand(1), scope) : Result<ExpressionValue>(std::move(value));
    }
    case Op::kExists: {
      MR_ASSIGN_OR_RETURN(const ExpressionValue value, evaluate(operand(0), scope));
      return ExpressionValue(!std::holds_alternative<AbsentValue>(value) && !std::holds_alternative<NoneValue>(value));
    }
    case Op::kIsList: {
      MR_ASSIGN_OR_RETURN(const ExpressionValue value, evaluate(operand(0), scope));
      const auto* found = std::get_if<const json::value*>(&value);
      return ExpressionValue(found != nullptr && (*found)->is_array());
    }
    case Op::kContains: {
      MR_ASSIGN_OR_RETURN(const ExpressionValue list, evaluate(operand(0), scope));
      MR_ASSIGN_OR_RETURN(const ExpressionValue wanted, evaluate_present(operand(1), scope));
      if (std::holds_alternative<AbsentValue>(list) || std::holds_alternative<NoneValue>(list)) return ExpressionValue(false);
      const auto* value = std::get_if<const json::value*>(&list);
      if (value == nullptr || !(*value)->is_array()) return error(fmt::format("contains takes a list, not {}", kind_name(list)));
      bool found = false;
      for (const json::value& element : (*value)->get_array()) {
        if (scope.fuel != nullptr && --*scope.fuel < 0) return out_of_fuel();
        MR_ASSIGN_OR_RETURN(const ExpressionValue equal, compare(Op::kEqual, value_of(element), wanted));
        found = found || std::get<bool>(equal);
      }
      return ExpressionValue(found);
    }
    case Op::kHasTensor: {
      MR_ASSIGN_OR_RETURN(const ExpressionValue value, evaluate_present(operand(0), scope));
      const std::string* name = std::get_if<std::string>(&value);
      if (name == nullptr) return error(fmt::format("has_tensor takes a text, not {}", kind_name(value)));
      return ExpressionValue(scope.has_tensor && scope.has_tensor(*name));
    }
    case Op::kNegate: {
      MR_ASSIGN_OR_RETURN(const ExpressionValue value, evaluate_present(operand(0), scope));
      return calculate(Op::kSubtract, int64_t{0}, value);
    }
    case Op::kSqrt:
    case Op::kLog:
    case Op::kFloor: {
      const std::string_view function = node.op == Op::kSqrt ? "sqrt" : node.op == Op::kLog ? "log" : "floor";
      MR_ASSIGN_OR_RETURN(const ExpressionValue value, evaluate_present(operand(0), scope));
      if (!is_number(value)) return error(fmt::format("{} takes a number, not {}", function, kind_name(value)));
      const double number = as_double(value);
      if (node.op == Op::kSqrt) {
        if (!(number >= 0)) return error(fmt::format("sqrt of {}", to_text(value)));
        return ExpressionValue(std::sqrt(number));
      }
      if (node.op == Op::kLog) {
        if (!(number > 0)) return error(fmt::format("log of {}", to_text(value)));
        return ExpressionValue(std::log(number));
      }
      if (std::holds_alternative<int64_t>(value)) return value;
      const double floored = std::floor(number);
      if (!(std::abs(floored) < 9.2e18)) return error(fmt::format("floor({}) is no 64-bit integer", number));
      return ExpressionValue(static_cast<int64_t>(floored));
    }
    default: {
      MR_ASSIGN_OR_RETURN(const ExpressionValue a, evaluate_present(operand(0), scope));
      MR_ASSIGN_OR_RETURN(const ExpressionValue b, evaluate_present(operand(1), scope));
      const bool comparison = node.op >= Op::kEqual && node.op <= Op::kGreaterEqual;
      return comparison ? compare(node.op, a, b) : calculate(node.op, a, b);
    }
  }
}

Result<ExpressionValue> Expression::member(const ExpressionValue& base, const std::string& name, std::string_view base_text) const {
  if (std::holds_alternative<AbsentValue>(base)) return base;
  if (std::holds_alternative<NoneValue>(base)) return ExpressionValue(AbsentValue{name});
  const auto* value = std::get_if<const json::value*>(&base);
  if (value == nullptr || !(*value)->is_object()) {
    return error(fmt::format("{} is {}, not an object with a field \"{}\"", base_text, kind_name(base), name));
  }
  const json::value* found = (*value)->get_object().if_contains(name);
  return found != nullptr ? value_of(*found) : ExpressionValue(AbsentValue{name});
}

Result<ExpressionValue> Expression::index(const Node& node, const ExpressionScope& scope) const {
  MR_ASSIGN_OR_RETURN(const ExpressionValue base, evaluate(node.operands[0], scope));
  if (std::holds_alternative<AbsentValue>(base)) return base;
  if (std::holds_alternative<NoneValue>(base)) return ExpressionValue(AbsentValue{"an element of none"});
  MR_ASSIGN_OR_RETURN(const ExpressionValue position, evaluate_present(node.operands[1], scope));
  if (const auto* name = std::get_if<std::string>(&position)) return member(base, *name, "the indexed value");
  const auto* value = std::get_if<const json::value*>(&base);
  if (value == nullptr || !(*value)->is_array())
    return error(fmt::format("{} is {} and cannot be indexed by {}", to_text(base), kind_name(base), to_text(position)));
  const int64_t* at = std::get_if<int64_t>(&position);
  if (at == nullptr) return error(fmt::format("a list is indexed by an integer, not by {}", kind_name(position)));
  const json::array& list = (*value)->get_array();
  if (*at < 0 || *at >= static_cast<int64_t>(list.size()))
    return error(fmt::format("index {} is outside of a list of {}", *at, list.size()));
  return value_of(list[static_cast<std::size_t>(*at)]);
}

Result<ExpressionValue> Expression::calculate(Op op, const ExpressionValue& a, const ExpressionValue& b) const {
  if (!is_number(a) || !is_number(b)) {
    return error(fmt::format("arithmetic needs numbers, not {} and {}", kind_name(a), kind_name(b)));
  }
  const bool zero = as_double(b) == 0;
  if (zero && op == Op::kDivide) return error("division by zero");
  if (zero && op == Op::kRemainder) return error("remainder of a division by zero");
  const int64_t* x = std::get_if<int64_t>(&a);
  const int64_t* y = std::get_if<int64_t>(&b);
  if (x != nullptr && y != nullptr) {
    int64_t result = 0;
    bool overflow = false;
    switch (op) {
      case Op::kAdd: overflow = __builtin_add_overflow(*x, *y, &result); break;
      case Op::kSubtract: overflow = __builtin_sub_overflow(*x, *y, &result); break;
      case Op::kMultiply: overflow = __builtin_mul_overflow(*x, *y, &result); break;
      case Op::kMin: result = *x < *y ? *x : *y; break;
      case Op::kMax: result = *x > *y ? *x : *y; break;
      case Op::kRemainder:
        result = *y == -1 ? 0 : *x % *y;  // -2^63 % -1 overflows in C++
        if (result != 0 && (result < 0) != (*y < 0)) result += *y;
        break;
      default:
        if (*y == -1) {
          overflow = __builtin_sub_overflow(int64_t{0}, *x, &result);
        } else if (*x % *y == 0) {
          result = *x / *y;
        } else {
          return ExpressionValue(static_cast<double>(*x) / static_cast<double>(*y));
        }
    }
    if (overflow) return error(fmt::format("{} and {} overflow a 64-bit integer", *x, *y));
    return ExpressionValue(result);
  }
  const double p = as_double(a), q = as_double(b);
  switch (op) {
    case Op::kAdd: return ExpressionValue(p + q);
    case Op::kSubtract: return ExpressionValue(p - q);
    case Op::kMultiply: return ExpressionValue(p * q);
    case Op::kDivide: return ExpressionValue(p / q);
    case Op::kMin: return p < q ? a : b;
    case Op::kMax: return p > q ? a : b;
    default: return ExpressionValue(p - q * std::floor(p / q));
  }
}

Result<ExpressionValue> Expression::compare(Op op, const ExpressionValue& a, const ExpressionValue& b) const {
  const bool equality = op == Op::kEqual || op == Op::kNotEqual;
  const auto answer = [&](auto order) {  // order: how a compares with b
    switch (op) {
      case Op::kEqual: return ExpressionValue(order == 0);
      case Op::kNotEqual: return ExpressionValue(order != 0);
      case Op::kLess: return ExpressionValue(order < 0);
      case Op::kLessEqual: return ExpressionValue(order <= 0);
      case Op::kGreater: return ExpressionValue(order > 0);
      default: return ExpressionValue(order >= 0);
    }
  };
  if (std::holds_alternative<int64_t>(a) && std::holds_alternative<int64_t>(b))
    return answer(std::get<int64_t>(a) <=> std::get<int64_t>(b));
  if (is_number(a) && is_number(b)) return answer(as_double(a) <=> as_double(b));
  if (equality) {
    const bool a_none = std::holds_alternative<NoneValue>(a), b_none = std::holds_alternative<NoneValue>(b);
    if (a_none || b_none) return answer(a_none == b_none ? 0 : 1);
    if (std::holds_alternative<std::string>(a) && std::holds_alternative<std::string>(b)) {
      return answer(std::get<std::string>(a) == std::get<std::string>(b) ? 0 : 1);
    }
    if (std::holds_alternative<bool>(a) && std::holds_alternative<bool>(b)) return answer(std::get<bool>(a) == std::get<bool>(b) ? 0 : 1);
  }
  return error(fmt::format("{} and {} cannot be compared", kind_name(a), kind_name(b)));
}

}  // namespace millrace
