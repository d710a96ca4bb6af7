#include "millrace/tokenizer/jinja/lexer.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cstdlib>

#include "millrace/base/utf8.h"
#include "millrace/tokenizer/jinja/budget.h"
#include "millrace/tokenizer/jinja/unicode.h"

namespace millrace::jinja {
namespace {

bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }
bool is_hex_digit(char c) { return is_ascii_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) read_data();
    add(TokenKind::kEnd, at_, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail_at(std::size_t offset, std::string message) const { throw SyntaxError{offset, std::move(message)}; }

  void add(TokenKind kind, std::size_t offset, std::string text) {
    Token token;
    token.kind = kind;
    token.offset = offset;
    token.text = std::move(text);
    tokens_.push_back(std::move(token));
  }

  bool starts_with(std::size_t at, std::string_view what) const { return source_.substr(at).starts_with(what); }
  std::size_t skip_spaces(std::size_t at) const {
    while (at < source_.size()) {
      const CodePoint c = decode_at(source_, at);
      if (!is_space(c.value)) break;
      at += c.num_bytes;
    }
    return at;
  }

  // Text up to the next tag, then that tag to its end.
  void read_data() {
    std::size_t tag = at_;
    for (;; ++tag) {
      tag = source_.find('{', tag);
      if (tag == std::string_view::npos || tag + 1 >= source_.size()) {
        add(TokenKind::kData, at_, std::string(source_.substr(at_)));
        at_ = source_.size();
        return;
      }
      const char next = source_[tag + 1];
      if (next == '%' || next == '{' || next == '#') break;
    }
    const char kind = source_[tag + 1];
    std::size_t after = tag + 2;
    char sign = 0;
    if (after < source_.size() && (source_[after] == '-' || source_[after] == '+')) sign = source_[after++];
    add_data(at_, tag, sign, kind != '{');
    at_ = after;
    if (kind == '#') return read_comment(tag);
    if (kind == '{') return read_tag(tag, TokenKind::kVariableBegin);
    if (skip_raw(tag)) return;
    read_tag(tag, TokenKind::kBlockBegin);
  }

  // Bytes [begin, end) before a tag. `sign` is the one after its brace; `strips_indent`: lstrip_blocks applies to the tag.
  void add_data(std::size_t begin, std::size_t end, char sign, bool strips_indent) {
    if (sign == '-') {
      while (end > begin) {
        const CodePoint c = decode_before(source_.substr(0, end), end);
        if (!is_space(c.value) || end - begin < c.num_bytes) break;
        end -= c.num_bytes;
      }
    } else if (sign != '+' && strips_indent) {
      const std::size_t newline = source_.substr(begin, end - begin).rfind('\n');
      const bool has_newline = newline != std::string_view::npos;
      const std::size_t line = has_newline ? begin + newline + 1 : begin;
      if ((has_newline || line_starting_) && line < end && skip_spaces_until(line, end)) end = line;
    }
    if (end > begin) add(TokenKind::kData, begin, std::string(source_.substr(begin, end - begin)));
  }

  bool skip_spaces_until(std::size_t begin, std::size_t end) const { return skip_spaces(begin) >= end; }

  // Ends a block or comment whose closing "%}" or "#}" (with sign, if any) ends at `end`.
  void finish_tag(std::size_t end, char sign, bool trims_newline) {
    at_ = end;
    if (sign == '-')
      at_ = skip_spaces(end);
    else if (sign != '+' && trims_newline && at_ < source_.size() && source_[at_] == '\n')
      ++at_;
    line_starting_ = source_[at_ - 1] == '\n';
  }

  void read_comment(std::size_t begin) {
    const std::size_t close = source_.find("#}", at_);
    if (close == std::string_view::npos) fail_at(begin, "Missing end of comment tag");
    const char sign = close > at_ ? source_[close - 1] : 0;
    finish_tag(close + 2, sign, true);
  }

  // {% raw %} ... {% endraw %}: when at_ is after "{%" of one, its content becomes data.
  bool skip_raw(std::size_t begin) {
    std::size_t at = skip_spaces(at_);
    if (!starts_with(at, "raw")) return false;
    at = skip_spaces(at + 3);
    const bool minus = starts_with(at, "-%}");
    if (!minus && !starts_with(at, "%}")) return false;
    at += minus ? 3 : 2;
    if (minus) at = skip_spaces(at);
    line_starting_ = source_[at - 1] == '\n';
    const std::size_t content = at;
    for (std::size_t tag = source_.find("{%", at); tag != std::string_view::npos; tag = source_.find("{%", tag + 2)) {
      std::size_t end = tag + 2;
      char sign = 0;
      if (end < source_.size() && (source_[end] == '-' || source_[end] == '+')) sign = source_[end++];
      end = skip_spaces(end);
      if (!starts_with(end, "endraw")) continue;
      end = skip_spaces(end + 6);
      char end_sign = 0;
      if (end < source_.size() && (source_[end] == '-' || source_[end] == '+')) end_sign = source_[end++];
      if (!starts_with(end, "%}")) continue;
      add_data(content, tag, sign, true);
      finish_tag(end + 2, end_sign, true);
      return true;
    }
    fail_at(begin, "Missing end of raw directive");
  }

  void read_tag(std::size_t begin, TokenKind begin_kind) {
    const bool block = begin_kind == TokenKind::kBlockBegin;
    add(begin_kind, begin, "");
    const std::string_view close = block ? "%}" : "}}";
    std::string open_brackets;
    for (;;) {
      at_ = skip_spaces(at_);
      if (at_ >= source_.size()) fail_at(begin, "Unexpected end of template: the tag that starts here is not closed");
      if (open_brackets.empty()) {
        const char sign = source_[at_] == '-' || (block && source_[at_] == '+') ? source_[at_] : 0;
        if (starts_with(at_ + (sign != 0 ? 1 : 0), close)) {
          add(block ? TokenKind::kBlockEnd : TokenKind::kVariableEnd, at_, "");
          return finish_tag(at_ + (sign != 0 ? 3 : 2), sign, block);
        }
      }
      read_token(open_brackets);
    }
  }

  void read_token(std::string& open_brackets) {
    const char c = source_[at_];
    if (is_ascii_digit(c)) return read_number();
    if (c == '\'' || c == '"') return read_string();
    if (read_name()) return;
    static constexpr std::array<std::string_view, 26> kOperators = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
                                                                    "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    for (std::string_view op : kOperators) {
      if (!starts_with(at_, op)) continue;
      if (op == "{" || op == "(" || op == "[") open_brackets += op == "{" ? '}' : op == "(" ? ')' : ']';
      if (op == "}" || op == ")" || op == "]") {
        if (open_brackets.empty()) fail_at(at_, fmt::format("unexpected '{}'", op));
        if (open_brackets.back() != op[0]) fail_at(at_, fmt::format("unexpected '{}', expected '{}'", op, open_brackets.back()));
        open_brackets.pop_back();
      }
      add(TokenKind::kOperator, at_, std::string(op));
      at_ += op.size();
      return;
    }
    fail_at(at_, fmt::format("unexpected char '{}'", source_.substr(at_, decode_at(source_, at_).num_bytes)));
  }

  bool read_name() {
    std::size_t end = at_;
    while (end < source_.size()) {
      const CodePoint c = decode_at(source_, end);
      if (c.value != '_' && !is_alnum(c.value)) break;
      end += c.num_bytes;
    }
    if (end == at_) return false;
    if (is_numeric(decode_at(source_, at_).value)) fail_at(at_, "Invalid character in identifier");
    add(TokenKind::kName, at_, std::string(source_.substr(at_, end - at_)));
    at_ = end;
    return true;
  }

  // Digits, with single underscores between them.
  std::size_t skip_digits(std::size_t at) const {
    while (at < source_.size() &&
           (is_ascii_digit(source_[at]) || (source_[at] == '_' && at + 1 < source_.size() && is_ascii_digit(source_[at + 1]))))
      ++at;
    return at;
  }

  void read_number() {
    const std::size_t begin = at_;
    const auto digit_at = [&](std::size_t i) { return i < source_.size() && is_ascii_digit(source_[i]); };
    const auto text_to = [&](std::size_t end) {
      std::string text(source_.substr(begin, end - begin));
      std::erase(text, '_');
      return text;
    };
    // After a dot ("x.0.1") a number is an index, never a float.
    const bool after_dot = begin > 0 && source_[begin - 1] == '.';
    std::size_t end = skip_digits(begin);
    bool is_float = false;
    if (!after_dot) {
      std::size_t float_end = end;
      if (float_end < source_.size() && source_[float_end] == '.' && digit_at(float_end + 1)) {
        float_end = skip_digits(float_end + 1);
        is_float = true;
      }
      if (float_end < source_.size() && (source_[float_end] == 'e' || source_[float_end] == 'E')) {
        const bool sign = float_end + 1 < source_.size() && (source_[float_end + 1] == '+' || source_[float_end + 1] == '-');
        const std::size_t exponent = float_end + (sign ? 2 : 1);
        if (digit_at(exponent)) {
          float_end = skip_digits(exponent);
          is_float = true;
        }
      }
      if (is_float) end = float_end;
    }
    if (is_float) {
      add(TokenKind::kFloat, begin, text_to(end));
      tokens_.back().number = std::strtod(tokens_.back().text.c_str(), nullptr);
      at_ = end;
      return;
    }
    int base = 10;
    std::size_t digits = begin;
    if (source_[begin] == '0' && begin + 1 < source_.size()) {
      const char prefix = static_cast<char>(source_[begin + 1] | 0x20);
      const int prefixed = prefix == 'x' ? 16 : prefix == 'o' ? 8 : prefix == 'b' ? 2 : 10;
      std::size_t i = begin + 2;
      const auto fits = [&](char d) { return prefixed == 16 ? is_hex_digit(d) : d >= '0' && d < '0' + prefixed; };
      while (prefixed != 10 && i < source_.size() &&
             (fits(source_[i]) || (source_[i] == '_' && i + 1 < source_.size() && fits(source_[i + 1]))))
        ++i;
      if (prefixed != 10 && i > begin + 2) {
        base = prefixed;
        digits = begin + 2;
        end = i;
      }
    }
    if (base == 10 && source_[begin] == '0' && text_to(end).find_first_not_of('0') != std::string::npos) {
      fail_at(begin, "leading zeros in a number are not permitted");
    }
    std::string text = text_to(end);
    const std::string value_text = base == 10 ? text : text_to(end).substr(digits - begin);
    Token token;
    token.kind = TokenKind::kInteger;
    token.offset = begin;
    const auto parsed = std::from_chars(value_text.data(), value_text.data() + value_text.size(), token.integer, base);
    if (parsed.ec != std::errc()) fail_at(begin, fmt::format("the number {} does not fit in 64 bits", text));
    token.text = std::move(text);
    tokens_.push_back(std::move(token));
    at_ = end;
  }

  void read_string() {
    const std::size_t begin = at_;
    const char quote = source_[at_++];
    std::string value;
    for (;;) {
      if (at_ >= source_.size()) fail_at(begin, fmt::format("unexpected char '{}': the string is not closed", quote));
      const char c = source_[at_++];
      if (c == quote) break;
      if (c == '\\')
        read_escape(value);
      else
        value += c;
    }
    add(TokenKind::kString, begin, std::move(value));
  }

  void read_escape(std::string& value) {
    if (at_ >= source_.size()) return;
    const char c = source_[at_++];
    static constexpr std::string_view kFrom = "\\'\"abfnrtv";
    static constexpr std::string_view kTo = "\\'\"\a\b\f\n\r\t\v";
    if (const std::size_t i = kFrom.find(c); i != std::string_view::npos) {
      value += kTo[i];
    } else if (c == '\n') {
      // an escaped line end vanishes
    } else if (c == 'x' || c == 'u' || c == 'U') {
      utf8::append(value, read_hex(c == 'x' ? 2 : c == 'u' ? 4 : 8));
    } else if (c >= '0' && c <= '7') {
      char32_t code = static_cast<char32_t>(c - '0');
      for (int more = 0; more < 2 && at_ < source_.size() && source_[at_] >= '0' && source_[at_] <= '7'; ++more) {
        code = code * 8 + static_cast<char32_t>(source_[at_++] - '0');
      }
      utf8::append(value, code);
    } else if (c == 'N') {
      fail_at(at_ - 2, "characters by name (\\N) are not supported");
    } else {
      value += '\\';
      value += c;
    }
  }

  char32_t read_hex(std::size_t num_digits) {
    const std::size_t begin = at_ - 2;
    uint32_t code = 0;
    const std::string_view digits = source_.substr(at_, num_digits);
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    if (digits.size() != num_digits || parsed.ptr != digits.data() + num_digits) fail_at(begin, "truncated character escape");
    if (code > 0x10ffff) fail_at(begin, "illegal Unicode character");
    at_ += num_digits;
    return code;
  }

  std::string_view source_;
  std::size_t at_ = 0;
  bool line_starting_ = true;  // the last tag's end reached the start of a line
  std::vector<Token> tokens_;
};

}  // namespace

std::string normalize_source(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
      continue;
    }
    out += '\n';
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace millrace::jinja
