#include "millrace/server/json_writer.h"

#include <gtest/gtest.h>

#include <limits>

#include "millrace/base/json.h"

namespace millrace {
namespace {

std::string json_string(std::string_view text) {
  std::string out;
  append_json_string(out, text);
  return out;
}

TEST(JsonString, EscapesWhatJsonCannotHold) {
  EXPECT_EQ(json_string("a\"b\\c\n\t\r"), R"("a\"b\\c\n\t\r")");
  EXPECT_EQ(json_string(std::string_view("\0\x01\x1f\x7f", 4)), R"("\u0000\u0001\u001f\u007f")");
  EXPECT_EQ(json_string("é漢😀"), "\"é漢😀\"");
}

TEST(JsonString, EveryByteAloneGivesTextThatParses) {
  for (int byte = 0; byte < 256; ++byte) {
    SCOPED_TRACE(byte);
    const std::string text(1, static_cast<char>(byte));
    const Result<json::value> parsed = parse_json(json_string("a" + text + "z"));
    ASSERT_TRUE(parsed.is_ok()) << parsed.status().message();
    EXPECT_EQ(std::string(parsed->as_string()), byte < 128 ? "a" + text + "z" : "a\xEF\xBF\xBDz");
  }
}

TEST(JsonString, ReplacesMalformedUtf8AndKeepsItsNeighbours) {
  const std::pair<std::string_view, std::string_view> cases[] = {
      {"a\xC3", "a�"},               // cut short
      {"\xE6\xBC", "�"},             // cut short, two bytes
      {"\xC0\xAF", "��"},            // overlong
      {"\xED\xA0\x80", "���"},       // a surrogate
      {"\xF4\x90\x80\x80", "����"},  // beyond U+10FFFF
      {"\xF0\x9F\x98\x80!", "😀!"},
      {"\x80x", "�x"},
  };
  for (const auto& [bytes, expected] : cases) EXPECT_EQ(json_string(bytes), "\"" + std::string(expected) + "\"");
}

TEST(JsonWriter, PutsCommasBetweenValuesOnly) {
  JsonWriter json;
  json.begin_object().field("a", 1).key("b").begin_array().value("x").null().value(true).value(0.5).begin_object().end_object().end_array();
  json.key("c").raw("[1]").field("d", int64_t{-2}).end_object();
  EXPECT_EQ(json.text(), R"({"a":1,"b":["x",null,true,0.5,{}],"c":[1],"d":-2})");
}

TEST(JsonWriter, WritesNumbersThatReadBackExactly) {
  for (const double number : {0.1, 1e-300, -1.7976931348623157e308, 3.0, 123456789.125}) {
    JsonWriter json;
    json.value(number);
    const Result<json::value> parsed = parse_json(json.text());
    ASSERT_TRUE(parsed.is_ok()) << json.text();
    EXPECT_EQ(parsed->to_number<double>(), number) << json.text();
  }
  EXPECT_EQ(JsonWriter().value(std::numeric_limits<double>::infinity()).text(), "null");
  EXPECT_EQ(JsonWriter().value(std::numeric_limits<double>::quiet_NaN()).text(), "null");
}

}  // namespace
}  // namespace millrace
