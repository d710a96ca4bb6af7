#include "millrace/base/json_text.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace millrace {
namespace {

TEST(JsonText, NumbersAreWrittenAsPeopleWriteThem) {
  EXPECT_EQ(json_text(36.311751), "36.311751");
  EXPECT_EQ(json_text(0.0015), "0.0015");
  EXPECT_EQ(json_text(2.0), "2.0");
  EXPECT_EQ(json_text(-0.0), "-0.0");
  EXPECT_EQ(json_text(123456789012.5), "123456789012.5");
  EXPECT_EQ(json_text(int64_t{-7}), "-7");
  EXPECT_EQ(json_text(std::numeric_limits<double>::infinity()), "null");
  EXPECT_EQ(json_text(std::nan("")), "null");
}

TEST(JsonText, ReadsBackToTheSameValue) {
  for (const double number : {0.1, 1.0 / 3, 5e-324, 1.7976931348623157e308, 1e16, 1e15, 123456.0, -1e-5, 9007199254740993.0}) {
    const auto read = parse_json(json_text(number));
    ASSERT_TRUE(read.is_ok()) << json_text(number);
    ASSERT_TRUE(read->is_double()) << json_text(number);
    EXPECT_EQ(read->get_double(), number) << json_text(number);
  }
  const json::value nested =
      json::object{{"a \"b\"\n", json::array{1, 2.5, nullptr, true, "\xc3\xbc"}}, {"empty", json::object{}}, {"none", json::array{}}};
  EXPECT_EQ(json_text(nested), "{\"a \\\"b\\\"\\n\":[1,2.5,null,true,\"\xc3\xbc\"],\"empty\":{},\"none\":[]}");
  EXPECT_EQ(*parse_json(json_text(nested)), nested);
}

}  // namespace
}  // namespace millrace
