#include "millrace/model/expression.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace millrace {
namespace {

using testing::HasSubstr;

// The fields of a small configuration; "i" is 3.
ExpressionScope test_scope() {
  static const json::value config = json::parse(R"({
      "hidden_size": 64, "num_heads": 6, "eps": 1e-5, "act": "silu", "tied": true, "nothing": null, "huge": 9223372036854775807,
      "layer_types": ["full", "full", "full", "sliding"], "rope": {"full": {"theta": 1e6}, "sliding": {"theta": 1e4}}})");
  ExpressionScope scope;
  scope.field = [](std::string_view name) -> Result<ExpressionValue> {
    const json::value* value = config.get_object().if_contains(name);
    return value != nullptr ? value_of(*value) : ExpressionValue(AbsentValue{std::string(name)});
  };
  scope.has_tensor = [](std::string_view name) { return name == "output.weight"; };
  scope.layer = 3;
  return scope;
}

struct ValueCase {
  std::string_view text, value;
};

class ExpressionValues : public testing::TestWithParam<ValueCase> {};

TEST_P(ExpressionValues, Evaluate) {
  const Result<Expression> expression = Expression::parse(GetParam().text);
  ASSERT_TRUE(expression.is_ok()) << expression.status().message();
  const Result<ExpressionValue> value = expression->evaluate(test_scope());
  ASSERT_TRUE(value.is_ok()) << value.status().message();
  EXPECT_EQ(to_text(*value), GetParam().value);
}

INSTANTIATE_TEST_SUITE_P(
    Table, ExpressionValues,
    testing::Values(ValueCase{"1 + 2 * 3", "7"}, ValueCase{"(1 + 2) * 3", "9"}, ValueCase{"10 - 3 - 2", "5"}, ValueCase{"-2 * -3", "6"},
                    ValueCase{"hidden_size / 4", "16"}, ValueCase{"hidden_size / num_heads", "10.666666666666666"}, ValueCase{"7 % 4", "3"},
                    ValueCase{"-7 % 4", "1"}, ValueCase{"7.5 % 2", "1.5"}, ValueCase{"1.5e2", "150"}, ValueCase{"(i + 1) % 4 == 0", "true"},
                    ValueCase{"sqrt(hidden_size)", "8"}, ValueCase{"1 / sqrt(16)", "0.25"}, ValueCase{"log(1) + 2", "2"},
                    ValueCase{"floor(hidden_size * 0.3)", "19"}, ValueCase{"min(3, 2)", "2"}, ValueCase{"max(3, 2.5)", "3"},
                    ValueCase{"missing ?? 5", "5"}, ValueCase{"nothing ?? 5", "5"}, ValueCase{"missing ?? nothing ?? 7", "7"},
                    ValueCase{"missing ?? 2 + 3", "5"}, ValueCase{"missing ?? 0 > 0", "false"},
                    ValueCase{"exists(tied) and not exists(nothing)", "true"}, ValueCase{"exists(missing.deeper)", "false"},
                    ValueCase{"is_list(layer_types) and not is_list(rope)", "true"}, ValueCase{"is_list(missing) or is_list(5)", "false"},
                    ValueCase{"contains(layer_types, 'sliding') and not contains(layer_types, 'none')", "true"},
                    ValueCase{"contains(missing, 3) or contains(nothing, 3)", "false"}, ValueCase{"act == 'silu' ? 'yes' : 'no'", "'yes'"},
                    ValueCase{"tied ? i > 5 ? 1 : 2 : 3", "2"}, ValueCase{"layer_types[i]", "'sliding'"},
                    ValueCase{"layer_types[0] == 'sliding'", "false"}, ValueCase{"rope[layer_types[i]].theta", "10000"},
                    ValueCase{"rope[layer_types[0]].theta", "1000000"}, ValueCase{"missing[i] ?? 'full'", "'full'"},
                    ValueCase{"nothing == none", "true"}, ValueCase{"5 != none", "true"}, ValueCase{"false and missing", "false"},
                    ValueCase{"true or 1 / 0 > 1", "true"}, ValueCase{"true ? 1 : 1 / 0", "1"},
                    ValueCase{"has_tensor('output.weight')", "true"}, ValueCase{"not has_tensor('a')", "true"},
                    ValueCase{"2 <= 2.0", "true"}, ValueCase{"none", "none"}, ValueCase{"rope", "an object"}, ValueCase{"eps < 1", "true"},
                    ValueCase{"missing", "absent (missing)"}));

class ExpressionErrors : public testing::TestWithParam<ValueCase> {};

TEST_P(ExpressionErrors, SayWhatIsWrong) {
  const Result<Expression> expression = Expression::parse(GetParam().text);
  const Status status = expression.is_ok() ? expression->evaluate(test_scope()).status() : expression.status();
  ASSERT_FALSE(status.is_ok());
  EXPECT_THAT(status.message(), HasSubstr(GetParam().value));
  EXPECT_THAT(status.message(), HasSubstr(fmt::format("\"{}\"", GetParam().text)));
}

INSTANTIATE_TEST_SUITE_P(
    Table, ExpressionErrors,
    testing::Values(ValueCase{"1 / 0", "division by zero"}, ValueCase{"hidden_size % 0", "division by zero"},
                    ValueCase{"1 / 0.0", "division by zero"}, ValueCase{"missing + 1", "no field \"missing\""},
                    ValueCase{"missing == 1", "no field \"missing\""}, ValueCase{"act + 1", "needs numbers"},
                    ValueCase{"nothing + 1", "needs numbers"}, ValueCase{"act < 'z'", "cannot be compared"},
                    ValueCase{"act == 1", "cannot be compared"}, ValueCase{"hidden_size ? 1 : 2", "must be true or false"},
                    ValueCase{"not 1", "must be true or false"}, ValueCase{"layer_types[4]", "outside of a list of 4"},
                    ValueCase{"layer_types[-1]", "outside of a list of 4"}, ValueCase{"layer_types['a']", "not an object"},
                    ValueCase{"hidden_size[0]", "cannot be indexed"}, ValueCase{"sqrt(-1)", "sqrt of -1"},
                    ValueCase{"sqrt(act)", "takes a number"}, ValueCase{"log(0)", "log of 0"}, ValueCase{"log('a')", "log takes a number"},
                    ValueCase{"floor(1e300)", "64-bit"}, ValueCase{"huge + 1", "overflow"}, ValueCase{"huge * 2", "overflow"},
                    ValueCase{"-huge - 2", "overflow"}, ValueCase{"has_tensor(1)", "takes a text"},
                    ValueCase{"contains(act, 1)", "takes a list"}, ValueCase{"contains(layer_types, 1)", "cannot be compared"},
                    ValueCase{"", "found the end"}, ValueCase{"1 +", "found the end"}, ValueCase{"(1", "expected \")\""},
                    ValueCase{"1 2", "column 3"}, ValueCase{"a ? b", "expected \":\""}, ValueCase{"'open", "no closing quote"},
                    ValueCase{"system('x')", "no function \"system\""}, ValueCase{"min(1)", "takes 2 argument"},
                    ValueCase{"1 = 1", "column 3"}, ValueCase{"a[1", "expected \"]\""}, ValueCase{"and", "found \"and\""},
                    ValueCase{"1e999", "too large"}, ValueCase{"3x", "followed by a letter"}, ValueCase{"a. b", "expected a name"},
                    ValueCase{"1 < 2 < 3", "expected an operator"}));

TEST(Expression, LengthAndDepthAreBounded) {
  EXPECT_FALSE(Expression::parse(std::string(2000, '1')).is_ok());
  for (const std::string_view open : {"(", "-", "not ", "a[", "a ?? "}) {
    std::string text;
    for (int i = 0; i < 60; ++i) text += open;
    const Result<Expression> expression = Expression::parse(text + "1");
    ASSERT_FALSE(expression.is_ok()) << open;
    EXPECT_THAT(expression.status().message(), HasSubstr("nested too deeply")) << open;
  }
}

TEST(Expression, LayerIndexHasNoMeaningOutsideOfLayers) {
  ExpressionScope scope = test_scope();
  scope.layer.reset();
  const Result<ExpressionValue> value = Expression::parse("i + 1").value().evaluate(scope);
  ASSERT_FALSE(value.is_ok());
  EXPECT_THAT(value.status().message(), HasSubstr("outside of \"layers\""));
}

TEST(Expression, FuelEndsEvaluation) {
  int64_t fuel = 3;
  ExpressionScope scope = test_scope();
  scope.fuel = &fuel;
  EXPECT_EQ(Expression::parse("1 + 2 + 3 + 4").value().evaluate(scope).status().code(), StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace millrace
