#include "millrace/tokenizer/jinja/predicates.h"

#include <fmt/format.h>

#include "millrace/tokenizer/jinja/filters.h"
#include "millrace/tokenizer/jinja/methods.h"
#include "millrace/tokenizer/jinja/operators.h"
#include "millrace/tokenizer/jinja/runtime.h"

namespace millrace::jinja {
namespace {

void expect_none(const CallArguments& arguments) { arguments.bind("test", {}); }

const Value& expect_one(const CallArguments& arguments) {
  if (arguments.positional.size() != 1 || !arguments.named.empty()) fail("the test takes exactly one argument");
  return arguments.positional[0];
}

template <Kind kind>
bool is_kind(Runtime&, const Value& value, const CallArguments& arguments) {
  expect_none(arguments);
  return value.kind() == kind;
}

bool is_defined(Runtime&, const Value& value, const CallArguments& arguments) {
  expect_none(arguments);
  return !value.is_undefined();
}

bool is_number(Runtime&, const Value& value, const CallArguments& arguments) {
  expect_none(arguments);
  return value.is_number();
}

template <bool wanted>
bool is_bool(Runtime&, const Value& value, const CallArguments& arguments) {
  expect_none(arguments);
  return value.kind() == Kind::kBool && value.as_bool() == wanted;
}

bool is_sequence(Runtime& runtime, const Value& value, const CallArguments& arguments) {
  expect_none(arguments);
  if (value.is_list()) return value.list().can_be_indexed();
  return value.is_string() || value.is_dict() || (value.is_undefined() && runtime.length(value).has_value());
}

bool is_iterable(Runtime&, const Value& value, const CallArguments& arguments) {
  expect_none(arguments);
  return value.is_list() || value.is_string() || value.is_dict() || value.is_undefined();
}

bool is_callable(Runtime&, const Value& value, const CallArguments& arguments) {
  expect_none(arguments);
  // An undefined value has __call__, which fails.
  return value.kind() == Kind::kMethod || value.is_undefined() || (value.kind() == Kind::kObject && value.object()->is_callable());
}

template <int remainder>
bool has_remainder(Runtime& runtime, const Value& value, const CallArguments& arguments) {
  expect_none(arguments);
  return equal(runtime.budget(), arithmetic(runtime, ArithmeticOp::kModulo, value, Value(int64_t{2})), Value(int64_t{remainder}));
}

bool is_divisible(Runtime& runtime, const Value& value, const CallArguments& arguments) {
  return equal(runtime.budget(), arithmetic(runtime, ArithmeticOp::kModulo, value, expect_one(arguments)), Value(int64_t{0}));
}

template <CompareOp op>
bool compares(Runtime& runtime, const Value& value, const CallArguments& arguments) {
  return compare(runtime, op, value, expect_one(arguments));
}

bool is_same(Runtime&, const Value& value, const CallArguments& arguments) {
  const Value& other = expect_one(arguments);
  if (value.kind() != other.kind()) return false;
  switch (value.kind()) {
    case Kind::kNone: return true;
    case Kind::kBool: return value.as_bool() == other.as_bool();
    // CPython keeps one object for each small integer.
    case Kind::kInt: return value.as_int() == other.as_int() && value.as_int() >= -5 && value.as_int() <= 256;
    case Kind::kString: return value.text_ptr() == other.text_ptr();
    case Kind::kList: return value.list_ptr() == other.list_ptr();
    case Kind::kDict: return value.dict_ptr() == other.dict_ptr();
    case Kind::kObject: return value.object() == other.object();
    default: return false;
  }
}

template <bool upper>
bool has_case(Runtime& runtime, const Value& value, const CallArguments& arguments) {
  expect_none(arguments);
  const Value text = runtime.text_of(value);
  return find_string_method(upper ? "isupper" : "islower")->function(runtime, text, {}).as_bool();
}

bool is_filter_name(Runtime&, const Value& value, const CallArguments& arguments) {
  expect_none(arguments);
  return value.is_string() && find_filter(value.text().bytes) != nullptr;
}

bool is_test_name(Runtime&, const Value& value, const CallArguments& arguments) {
  expect_none(arguments);
  return value.is_string() && find_test(value.text().bytes) != nullptr;
}

bool is_escaped(Runtime&, const Value& value, const CallArguments& arguments) {
  expect_none(arguments);
  return value.is_string() && value.text().markup;
}

struct NamedTest {
  std::string_view name;
  TestFunction function;
};
constexpr NamedTest kTests[] = {{"defined", is_defined},
                                {"undefined", is_kind<Kind::kUndefined>},
                                {"none", is_kind<Kind::kNone>},
                                {"string", is_kind<Kind::kString>},
                                {"mapping", is_kind<Kind::kDict>},
                                {"boolean", is_kind<Kind::kBool>},
                                {"integer", is_kind<Kind::kInt>},
                                {"float", is_kind<Kind::kFloat>},
                                {"number", is_number},
                                {"true", is_bool<true>},
                                {"false", is_bool<false>},
                                {"sequence", is_sequence},
                                {"iterable", is_iterable},
                                {"callable", is_callable},
                                {"odd", has_remainder<1>},
                                {"even", has_remainder<0>},
                                {"divisibleby", is_divisible},
                                {"eq", compares<CompareOp::kEqual>},
                                {"==", compares<CompareOp::kEqual>},
                                {"equalto", compares<CompareOp::kEqual>},
                                {"ne", compares<CompareOp::kNotEqual>},
                                {"!=", compares<CompareOp::kNotEqual>},
                                {"lt", compares<CompareOp::kLess>},
                                {"<", compares<CompareOp::kLess>},
                                {"lessthan", compares<CompareOp::kLess>},
                                {"le", compares<CompareOp::kLessEqual>},
                                {"<=", compares<CompareOp::kLessEqual>},
                                {"gt", compares<CompareOp::kGreater>},
                                {">", compares<CompareOp::kGreater>},
                                {"greaterthan", compares<CompareOp::kGreater>},
                                {"ge", compares<CompareOp::kGreaterEqual>},
                                {">=", compares<CompareOp::kGreaterEqual>},
                                {"in", compares<CompareOp::kIn>},
                                {"sameas", is_same},
                                {"lower", has_case<false>},
                                {"upper", has_case<true>},
                                {"filter", is_filter_name},
                                {"test", is_test_name},
                                {"escaped", is_escaped}};

}  // namespace

TestFunction find_test(std::string_view name) {
  for (const auto& test : kTests) {
    if (test.name == name) return test.function;
  }
  return nullptr;
}

}  // namespace millrace::jinja
