#include "millrace/tokenizer/jinja/operators.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "millrace/tokenizer/jinja/formatting.h"
#include "millrace/tokenizer/jinja/runtime.h"
#include "millrace/tokenizer/jinja/unicode.h"

namespace millrace::jinja {
namespace {

constexpr std::string_view kSymbols[] = {"+", "-", "*", "/", "//", "%", "**"};

[[noreturn]] void fail_operands(ArithmeticOp op, const Value& a, const Value& b) {
  if (op == ArithmeticOp::kAdd && a.is_string()) fail(fmt::format("can only concatenate str (not \"{}\") to str", type_name(b)));
  fail(fmt::format("unsupported operand type(s) for {}: '{}' and '{}'", kSymbols[static_cast<int>(op)], type_name(a), type_name(b)));
}

[[noreturn]] void fail_overflow() { fail("the result does not fit in a 64-bit integer"); }

int64_t floor_divide(int64_t a, int64_t b) {
  if (b == 0) fail("integer division or modulo by zero");
  if (a == INT64_MIN && b == -1) fail_overflow();
  return a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
}

int64_t modulo(int64_t a, int64_t b) {
  if (b == 0) fail("integer division or modulo by zero");
  if (b == -1) return 0;
  const int64_t rest = a % b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

double modulo(double a, double b) {
  if (b == 0) fail("float modulo");
  const double rest = std::fmod(a, b);
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

Value power(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral() && b.as_int() >= 0) {
    int64_t base = a.as_int(), result = 1;
    for (int64_t exponent = b.as_int(); exponent > 0; exponent >>= 1) {
      if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) fail_overflow();
      if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) fail_overflow();
    }
    return result;
  }
  const double base = a.as_double(), exponent = b.as_double();
  if (base == 0 && exponent < 0) fail("0.0 cannot be raised to a negative power");
  if (base < 0 && exponent != std::floor(exponent)) fail("complex numbers are not supported");
  const double result = std::pow(base, exponent);
  if (std::isinf(result) && !std::isinf(base) && !std::isinf(exponent)) fail("numerical result out of range");
  return result;
}

Value integer_arithmetic(ArithmeticOp op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  switch (op) {
    case ArithmeticOp::kAdd: overflow = __builtin_add_overflow(a, b, &result); break;
    case ArithmeticOp::kSubtract: overflow = __builtin_sub_overflow(a, b, &result); break;
    case ArithmeticOp::kMultiply: overflow = __builtin_mul_overflow(a, b, &result); break;
    case ArithmeticOp::kDivide:
      if (b == 0) fail("division by zero");
      return static_cast<double>(a) / static_cast<double>(b);
    case ArithmeticOp::kFloorDivide: return floor_divide(a, b);
    case ArithmeticOp::kModulo: return modulo(a, b);
    case ArithmeticOp::kPower: return power(Value(a), Value(b));
  }
  if (overflow) fail_overflow();
  return result;
}

Value float_arithmetic(ArithmeticOp op, double a, double b) {
  switch (op) {
    case ArithmeticOp::kAdd: return a + b;
    case ArithmeticOp::kSubtract: return a - b;
    case ArithmeticOp::kMultiply: return a * b;
    case ArithmeticOp::kDivide:
      if (b == 0) fail("float division by zero");
      return a / b;
    case ArithmeticOp::kFloorDivide:
      if (b == 0) fail("float floor division by zero");
      return std::floor((a - modulo(a, b)) / b + 0.5);
    case ArithmeticOp::kModulo: return modulo(a, b);
    case ArithmeticOp::kPower: return power(Value(a), Value(b));
  }
  return 0.0;
}

Value repeat(Runtime& runtime, const Value& value, int64_t count) {
  const auto times = static_cast<std::size_t>(std::max<int64_t>(count, 0));
  const auto check = [&](std::size_t size, std::size_t unit) {
    std::size_t total = 0;
    if (__builtin_mul_overflow(size, unit, &total) || __builtin_mul_overflow(total, times, &total)) total = SIZE_MAX / 2;
    runtime.budget().charge_bytes(total);
  };
  if (value.is_string()) {
    check(value.text().bytes.size(), 1);
    TextBuilder builder(runtime.budget());
    for (std::size_t i = 0; i < times && !value.text().bytes.empty(); ++i) builder.append(value.text());
    return builder.finish(value.text().markup);
  }
  const auto& items = value.list().items;
  check(items.size(), sizeof(Value));
  std::vector<Value> out;
  for (std::size_t i = 0; i < times && !items.empty(); ++i) out.insert(out.end(), items.begin(), items.end());
  return make_list(std::move(out), value.list().kind);
}

bool is_repeatable(const Value& value) {
  return value.is_string() || (value.is_list() && (value.list().kind == ListKind::kList || value.list().kind == ListKind::kTuple));
}

Value add(Runtime& runtime, const Value& a, const Value& b) {
  if (a.is_string() && b.is_string()) {
    TextBuilder builder(runtime.budget());
    const bool markup = a.text().markup || b.text().markup;
    if (markup) {
      builder.append_escaped(a.text());
      builder.append_escaped(b.text());
    } else {
      builder.append(a.text());
      builder.append(b.text());
    }
    return builder.finish(markup);
  }
  if (is_repeatable(a) && is_repeatable(b) && a.is_list() && b.is_list() && a.list().kind == b.list().kind) {
    std::vector<Value> items = runtime.iterate(a);
    runtime.budget().charge_bytes(b.list().items.size() * sizeof(Value));
    items.insert(items.end(), b.list().items.begin(), b.list().items.end());
    return make_list(std::move(items), a.list().kind);
  }
  fail_operands(ArithmeticOp::kAdd, a, b);
}

// start, stop, step and number of items of a slice over `size` items, as PySlice_AdjustIndices.
struct SliceIndices {
  int64_t start, step, count;
};
SliceIndices slice_indices(int64_t size, const Value& start, const Value& stop, const Value& step) {
  const int64_t by = step.is_none() ? 1 : require_integer(step, "slice indices");
  if (by == 0) fail("slice step cannot be zero");
  const auto clamp = [&](const Value& bound, int64_t fallback) {
    if (bound.is_none()) return fallback;
    int64_t at = require_integer(bound, "slice indices");
    if (at < 0)
      at = at < -size ? -1 : at + size;
    else if (at >= size)
      at = size;
    if (at < 0) return by < 0 ? int64_t{-1} : int64_t{0};
    return at >= size && by < 0 ? size - 1 : at;
  };
  const int64_t first = clamp(start, by < 0 ? size - 1 : 0);
  const int64_t last = clamp(stop, by < 0 ? -1 : size);
  int64_t count = 0;
  if (by > 0 && first < last) count = (last - first - 1) / by + 1;
  if (by < 0 && last < first) count = (first - last - 1) / (by == INT64_MIN ? INT64_MAX : -by) + 1;
  return {first, by, count};
}

}  // namespace

int64_t require_integer(const Value& value, std::string_view what) {
  require_defined(value);
  if (!value.is_integral()) fail(fmt::format("{} must be integers, not {}", what, type_name(value)));
  return value.as_int();
}

Value arithmetic(Runtime& runtime, ArithmeticOp op, const Value& a, const Value& b) {
  if (op == ArithmeticOp::kModulo && a.is_string()) return percent_format(runtime, a.text(), b);
  require_defined(a);
  require_defined(b);
  if (a.is_integral() && b.is_integral()) return integer_arithmetic(op, a.as_int(), b.as_int());
  if (a.is_number() && b.is_number()) return float_arithmetic(op, a.as_double(), b.as_double());
  if (op == ArithmeticOp::kAdd) return add(runtime, a, b);
  if (op == ArithmeticOp::kMultiply) {
    if (is_repeatable(a) && b.is_integral()) return repeat(runtime, a, b.as_int());
    if (is_repeatable(b) && a.is_integral()) return repeat(runtime, b, a.as_int());
  }
  fail_operands(op, a, b);
}

Value negate(const Value& value) {
  require_defined(value);
  if (value.kind() == Kind::kFloat) return -value.as_double();
  if (!value.is_integral()) fail(fmt::format("bad operand type for unary -: '{}'", type_name(value)));
  if (value.as_int() == INT64_MIN) fail_overflow();
  return -value.as_int();
}

bool contains(Runtime& runtime, const Value& container, const Value& item) {
  switch (container.kind()) {
    case Kind::kUndefined: return false;
    case Kind::kString:
      if (!item.is_string()) {
        require_defined(item);
        fail(fmt::format("'in <string>' requires string as left operand, not {}", type_name(item)));
      }
      runtime.budget().charge_bytes(container.text().bytes.size());
      return container.text().bytes.find(item.text().bytes) != std::string::npos;
    case Kind::kDict: return container.dict().find(item) != nullptr;
    case Kind::kList: {
      const auto& items = container.list().items;
      if (container.list().is_generator()) {
        const std::vector<Value> rest = runtime.iterate(container);
        return std::any_of(rest.begin(), rest.end(), [&](const Value& v) { return equal(runtime.budget(), v, item); });
      }
      return std::any_of(items.begin(), items.end(), [&](const Value& v) { return equal(runtime.budget(), v, item); });
    }
    default: fail(fmt::format("argument of type '{}' is not iterable", type_name(container)));
  }
}

bool compare(Runtime& runtime, CompareOp op, const Value& a, const Value& b) {
  Budget& budget = runtime.budget();
  // NaN compares false with all, so "not less" is not "greater or equal".
  const bool numbers = a.is_number() && b.is_number() && (a.kind() == Kind::kFloat || b.kind() == Kind::kFloat);
  switch (op) {
    case CompareOp::kEqual: return equal(budget, a, b);
    case CompareOp::kNotEqual: return !equal(budget, a, b);
    case CompareOp::kLess: return less(budget, a, b, "<");
    case CompareOp::kGreater: return less(budget, b, a, ">");
    case CompareOp::kLessEqual: return numbers ? a.as_double() <= b.as_double() : !less(budget, b, a, "<=");
    case CompareOp::kGreaterEqual: return numbers ? a.as_double() >= b.as_double() : !less(budget, a, b, ">=");
    case CompareOp::kIn: return contains(runtime, b, a);
    case CompareOp::kNotIn: return !contains(runtime, b, a);
  }
  return false;
}

Value slice(Runtime& runtime, const Value& value, const Value& start, const Value& stop, const Value& step) {
  require_defined(value);
  if (value.is_string()) {
    const TextPtr& text = value.text_ptr();
    runtime.budget().charge_bytes(text->ascii ? 0 : text->bytes.size());
    const SliceIndices at = slice_indices(static_cast<int64_t>(text->num_code_points()), start, stop, step);
    if (at.step == 1) {
      const std::size_t begin = text->byte_offset(static_cast<std::size_t>(at.start));
      return slice_text(runtime.budget(), text, begin, text->byte_offset(static_cast<std::size_t>(at.start + at.count)));
    }
    std::vector<Value> all = runtime.characters(text);
    TextBuilder builder(runtime.budget());
    for (int64_t i = 0; i < at.count; ++i) builder.append(all[static_cast<std::size_t>(at.start + i * at.step)].text());
    return builder.finish(text->markup);
  }
  if (value.is_dict()) fail("unhashable type: 'slice'");
  if (!value.is_list() || !value.list().can_be_indexed())
    return make_undefined(fmt::format("'{}' object is not subscriptable", type_name(value)));
  const auto& items = value.list().items;
  const SliceIndices at = slice_indices(static_cast<int64_t>(items.size()), start, stop, step);
  runtime.budget().charge_bytes(static_cast<std::size_t>(at.count) * sizeof(Value));
  std::vector<Value> out;
  out.reserve(static_cast<std::size_t>(at.count));
  for (int64_t i = 0; i < at.count; ++i) out.push_back(items[static_cast<std::size_t>(at.start + i * at.step)]);
  if (value.list().kind != ListKind::kRange)
    return make_list(std::move(out), value.list().kind == ListKind::kList ? ListKind::kList : ListKind::kTuple);
  auto range = std::make_shared<List>();
  range->kind = ListKind::kRange;
  range->start = value.list().start + at.start * value.list().step;
  range->step = value.list().step * at.step;
  range->stop = range->start + at.count * range->step;
  range->items = std::move(out);
  return std::shared_ptr<const List>(std::move(range));
}

}  // namespace millrace::jinja
