#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace millrace::jinja {

enum class TokenKind { kData, kBlockBegin, kBlockEnd, kVariableBegin, kVariableEnd, kName, kString, kInteger, kFloat, kOperator, kEnd };

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::size_t offset = 0;  // into the normalized source
  std::string text;        // of data and strings: the value; of the rest: as written
  int64_t integer = 0;
  double number = 0;

  bool is_operator(std::string_view op) const { return kind == TokenKind::kOperator && text == op; }
  bool is_name(std::string_view name) const { return kind == TokenKind::kName && text == name; }
};

// Line ends become "\n" and one line end at the end goes, as jinja2 reads a template.
std::string normalize_source(std::string_view source);

// Splits a normalized source into tokens, with trim_blocks and lstrip_blocks on. Comments and raw tags are gone; the last
// token is kEnd. Throws SyntaxError.
std::vector<Token> tokenize(std::string_view source);

}  // namespace millrace::jinja
