#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/tokenizer/jinja/budget.h"
#include "millrace/tokenizer/text_range.h"

namespace millrace::jinja {

// A string that knows which of its bytes the client wrote. Never changed once made.
struct Text {
  std::string bytes;
  std::vector<TextRange> user;  // ascending, not empty, not touching
  bool ascii = true;
  bool markup = false;  // went through `safe` or `escape`: what is added to it gets escaped, as markupsafe does

  std::size_t num_code_points() const;
  // Byte offset of code point `index`, 0 <= index <= num_code_points().
  std::size_t byte_offset(std::size_t index) const;
  bool has_user() const { return !user.empty(); }
};
using TextPtr = std::shared_ptr<const Text>;

// Wholly from the client, or wholly not.
TextPtr make_text(std::string bytes, bool user = false, bool markup = false);

// Builds a Text piece by piece. Every appended byte is charged before it is stored.
class TextBuilder {
 public:
  explicit TextBuilder(Budget& budget) : budget_(budget) {}

  void append(std::string_view bytes, bool user = false);
  void append(const Text& text) { append(text, 0, text.bytes.size()); }
  void append(const Text& text, std::size_t begin, std::size_t end);  // bytes [begin, end) of it
  void append_escaped(const Text& text);  // HTML-escaped unless it is markup; client characters stay the client's

  std::size_t size() const { return bytes_.size(); }
  std::string_view bytes() const { return bytes_; }
  TextPtr finish(bool markup = false);
  std::string take_bytes() { return std::move(bytes_); }
  std::vector<TextRange> take_user() { return std::move(user_); }

 private:
  void mark_user(std::size_t begin, std::size_t end);

  Budget& budget_;
  std::string bytes_;
  std::vector<TextRange> user_;
};

// Bytes [begin, end) of `text`; `text` itself when that is all of it.
TextPtr slice_text(Budget& budget, const TextPtr& text, std::size_t begin, std::size_t end);

// `converted` stands for `original`, character by character when both have the same length; else all of it counts as the
// client's as soon as any of the original does.
TextPtr converted_text(Budget& budget, const Text& original, std::string converted);

}  // namespace millrace::jinja
