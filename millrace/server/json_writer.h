#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace millrace {

// Appends `text` as a JSON string with its quotes. The result is valid UTF-8 whatever comes in: bytes that are no character become U+FFFD.
void append_json_string(std::string& out, std::string_view text);

// Writes JSON text in order: no tree is built for an answer, and an SSE chunk costs little more than its bytes.
//
//   JsonWriter json;
//   json.begin_object().field("id", id).field("created", created).key("choices").begin_array()...
class JsonWriter {
 public:
  JsonWriter& begin_object() { return open('{'); }
  JsonWriter& end_object() { return close('}'); }
  JsonWriter& begin_array() { return open('['); }
  JsonWriter& end_array() { return close(']'); }
  JsonWriter& key(std::string_view name);

  JsonWriter& value(std::string_view text);
  JsonWriter& value(const char* text) { return value(std::string_view(text)); }
  JsonWriter& value(const std::string& text) { return value(std::string_view(text)); }
  JsonWriter& value(int64_t number);
  JsonWriter& value(int32_t number) { return value(static_cast<int64_t>(number)); }
  JsonWriter& value(double number);  // null where it is not finite: JSON has no such numbers
  JsonWriter& value(bool boolean);
  JsonWriter& null();
  JsonWriter& raw(std::string_view json);  // a value that is JSON text already

  template <class T>
  JsonWriter& field(std::string_view name, const T& v) {
    return key(name).value(v);
  }

  const std::string& text() const { return text_; }
  std::string take() { return std::move(text_); }

 private:
  JsonWriter& open(char bracket);
  JsonWriter& close(char bracket);
  void separate();

  std::string text_;
  bool needs_comma_ = false;
};

}  // namespace millrace
