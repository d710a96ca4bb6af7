// Expressions.
#include <fmt/format.h>

#include "millrace/tokenizer/jinja/filters.h"
#include "millrace/tokenizer/jinja/operators.h"
#include "millrace/tokenizer/jinja/predicates.h"
#include "millrace/tokenizer/jinja/runtime.h"

namespace millrace::jinja {

Value Runtime::eval(ExprRef expr, Scope& scope) {
  budget_.charge_steps(1);
  check_stack();
  offset_ = expr->offset;
  switch (expr->kind) {
    case ExprKind::kConst: return static_cast<const ConstExpr*>(expr)->value;
    case ExprKind::kName: return eval_name(static_cast<const NameExpr*>(expr)->name_id, scope);
    case ExprKind::kList: return eval_list(*static_cast<const ListExpr*>(expr), scope);
    case ExprKind::kDict: return eval_dict(*static_cast<const DictExpr*>(expr), scope);
    case ExprKind::kAttribute: {
      const auto& attribute = *static_cast<const AttributeExpr*>(expr);
      const Value object = eval(attribute.object, scope);
      offset_ = expr->offset;
      return get_attribute(object, attribute.name);
    }
    case ExprKind::kItem: return eval_item(*static_cast<const ItemExpr*>(expr), scope);
    case ExprKind::kSlice: fail("a slice is no value");
    case ExprKind::kCall: return eval_call(*static_cast<const CallExpr*>(expr), scope, nullptr);
    case ExprKind::kFilter: return eval_filter(*static_cast<const FilterExpr*>(expr), scope, nullptr);
    case ExprKind::kTest: {
      const auto& test = *static_cast<const TestExpr*>(expr);
      const Value input = eval(test.input, scope);
      const CallArguments arguments = eval_arguments(test.arguments, scope);
      offset_ = expr->offset;
      return call_test(test.name, input, arguments);
    }
    case ExprKind::kUnary: return eval_unary(*static_cast<const UnaryExpr*>(expr), scope);
    case ExprKind::kArithmetic: return eval_arithmetic(*static_cast<const ArithmeticExpr*>(expr), scope);
    case ExprKind::kConcat: return eval_concat(*static_cast<const ConcatExpr*>(expr), scope);
    case ExprKind::kLogic: return eval_logic(*static_cast<const LogicExpr*>(expr), scope);
    case ExprKind::kCompare: return eval_compare(*static_cast<const CompareExpr*>(expr), scope);
    case ExprKind::kCondition: return eval_condition(*static_cast<const ConditionExpr*>(expr), scope);
  }
  return Value();
}

Value Runtime::eval_name(int name_id, Scope& scope) {
  for (const Scope* s = &scope; s != nullptr; s = s->parent) {
    if (const Value* value = s->find_here(name_id)) return *value;
  }
  return make_undefined(fmt::format("'{}' is undefined", program_.names[static_cast<std::size_t>(name_id)]));
}

Value Runtime::eval_list(const ListExpr& expr, Scope& scope) {
  std::vector<Value> items;
  items.reserve(expr.items.size());
  for (ExprRef item : expr.items) items.push_back(eval(item, scope));
  return make_list(std::move(items), expr.tuple ? ListKind::kTuple : ListKind::kList);
}

Value Runtime::eval_dict(const DictExpr& expr, Scope& scope) {
  Dict dict;
  for (const auto& [key, value] : expr.entries) {
    Value k = eval(key, scope);
    Value v = eval(value, scope);
    offset_ = key->offset;
    if (!k.is_string()) budget_.charge_bytes(dict.entries.size() * sizeof(Value));  // found by looking at all of them
    dict.set(std::move(k), std::move(v));
  }
  return std::move(dict).finish();
}

Value Runtime::eval_item(const ItemExpr& expr, Scope& scope) {
  const Value object = eval(expr.object, scope);
  if (expr.key->kind != ExprKind::kSlice) {
    const Value key = eval(expr.key, scope);
    offset_ = expr.offset;
    return get_item(object, key);
  }
  const auto& bounds = *static_cast<const SliceExpr*>(expr.key);
  const auto bound = [&](ExprRef e) { return e != nullptr ? eval(e, scope) : Value(None{}); };
  const Value start = bound(bounds.start);
  const Value stop = bound(bounds.stop);
  const Value step = bound(bounds.step);
  offset_ = expr.offset;
  return slice(*this, object, start, stop, step);
}

CallArguments Runtime::eval_arguments(const Arguments& arguments, Scope& scope) {
  CallArguments out;
  for (ExprRef e : arguments.positional) out.positional.push_back(eval(e, scope));
  for (const auto& [name, e] : arguments.named) {
    for (const auto& [other, value] : out.named) {
      if (other == name) fail(fmt::format("keyword argument repeated: {}", name));
    }
    out.named.emplace_back(name, eval(e, scope));
  }
  if (arguments.all_positional != nullptr) {
    for (Value& value : iterate(eval(arguments.all_positional, scope))) out.positional.push_back(std::move(value));
  }
  if (arguments.all_named != nullptr) {
    const Value all = eval(arguments.all_named, scope);
    require_defined(all);
    if (!all.is_dict()) fail(fmt::format("argument after ** must be a mapping, not {}", type_name(all)));
    for (const auto& [key, value] : all.dict().entries) {
      if (!key.is_string()) fail("keywords must be strings");
      out.user_names |= key.text().has_user();
      out.named.emplace_back(key.text().bytes, value);
    }
  }
  return out;
}

Value Runtime::eval_call(const CallExpr& expr, Scope& scope, Object* caller) {
  const Value callee = eval(expr.callee, scope);
  CallArguments arguments = eval_arguments(expr.arguments, scope);
  if (caller != nullptr) arguments.named.emplace_back("caller", Value(caller));
  offset_ = expr.offset;
  return call(callee, arguments);
}

Value Runtime::eval_filter(const FilterExpr& expr, Scope& scope, const Value* block_text) {
  Value input;
  if (expr.input == nullptr)
    input = *block_text;
  else if (block_text != nullptr)
    input = eval_filter(*static_cast<const FilterExpr*>(expr.input), scope, block_text);
  else
    input = eval(expr.input, scope);
  const CallArguments arguments = eval_arguments(expr.arguments, scope);
  offset_ = expr.offset;
  return call_filter(expr.name, input, arguments);
}

Value Runtime::eval_unary(const UnaryExpr& expr, Scope& scope) {
  const Value operand = eval(expr.operand, scope);
  offset_ = expr.offset;
  if (expr.op == UnaryOp::kNot) return !is_true(operand);
  if (expr.op == UnaryOp::kNegate) return negate(operand);
  require_defined(operand);
  if (!operand.is_number()) fail(fmt::format("bad operand type for unary +: '{}'", type_name(operand)));
  return operand.kind() == Kind::kBool ? Value(operand.as_int()) : operand;
}

Value Runtime::eval_arithmetic(const ArithmeticExpr& expr, Scope& scope) {
  Value result = eval(expr.first, scope);
  for (const auto& step : expr.rest) {
    const Value operand = eval(step.operand, scope);
    offset_ = step.offset;
    budget_.charge_steps(1);
    result = arithmetic(*this, step.op, result, operand);
  }
  return result;
}

Value Runtime::eval_concat(const ConcatExpr& expr, Scope& scope) {
  TextBuilder builder(budget_);
  for (ExprRef part : expr.parts) {
    const Value value = eval(part, scope);
    offset_ = part->offset;
    builder.append(*text_of(value));
  }
  return builder.finish();
}

Value Runtime::eval_logic(const LogicExpr& expr, Scope& scope) {
  Value value;
  for (ExprRef part : expr.parts) {
    value = eval(part, scope);
    if (is_true(value) != expr.conjunction) return value;
  }
  return value;
}

Value Runtime::eval_compare(const CompareExpr& expr, Scope& scope) {
  Value left = eval(expr.first, scope);
  for (const auto& [op, operand] : expr.rest) {
    Value right = eval(operand, scope);
    offset_ = operand->offset;
    if (!compare(*this, op, left, right)) return false;
    left = std::move(right);
  }
  return true;
}

Value Runtime::eval_condition(const ConditionExpr& expr, Scope& scope) {
  if (is_true(eval(expr.condition, scope))) return eval(expr.then, scope);
  if (expr.otherwise != nullptr) return eval(expr.otherwise, scope);
  return make_undefined("the inline if-expression evaluated to false and no else section was defined");
}

Value Runtime::call_filter(std::string_view name, const Value& input, const CallArguments& arguments) {
  const FilterFunction function = find_filter(name);
  if (function == nullptr) fail(fmt::format("No filter named '{}'.", name));
  return function(*this, input, arguments);
}

bool Runtime::call_test(std::string_view name, const Value& input, const CallArguments& arguments) {
  const TestFunction function = find_test(name);
  if (function == nullptr) fail(fmt::format("No test named '{}'.", name));
  return function(*this, input, arguments);
}

}  // namespace millrace::jinja
