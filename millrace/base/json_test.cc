#include "millrace/base/json.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

TEST(Json, KeepsTheOrderOfKeys) {
  const auto value = parse_json(R"({"b": 1, "a": [2, null]})");
  ASSERT_TRUE(value.is_ok());
  EXPECT_EQ(json::serialize(*value), R"({"b":1,"a":[2,null]})");
}

TEST(Json, ErrorsSayLineAndColumn) {
  const auto value = parse_json("{\n  \"a\": nul\n}");
  ASSERT_FALSE(value.is_ok());
  EXPECT_NE(value.status().message().find("line 2"), std::string::npos) << value.status().message();
}

TEST(Json, RefusesWhatIsNotStrictJson) {
  for (const char* text : {"", "{", "[1,]", "{} {}", "\"\xff\"", "nan"}) EXPECT_FALSE(parse_json(text).is_ok()) << text;
}

TEST(Json, RefusesDeepNesting) {
  EXPECT_TRUE(parse_json(std::string(60, '[') + std::string(60, ']')).is_ok());
  EXPECT_FALSE(parse_json(std::string(100000, '[')).is_ok());
}

}  // namespace
}  // namespace millrace
