#include "millrace/base/utf8.h"

namespace millrace::utf8 {

Scan scan(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(at);
  if (first < 0x80) return {1, true, false};
  if (first < 0xC2 || first > 0xF4) return {1, false, false};
  const std::size_t size = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  for (std::size_t i = 1; i < size; ++i) {
    if (at + i == text.size()) return {i, false, true};
    const unsigned char next = byte(at + i);
    bool ok = is_continuation(text[at + i]);
    if (i == 1) {  // overlong forms, surrogates and too large values differ in the second byte
      if (first == 0xE0) ok = ok && next >= 0xA0;
      if (first == 0xED) ok = ok && next < 0xA0;
      if (first == 0xF0) ok = ok && next >= 0x90;
      if (first == 0xF4) ok = ok && next < 0x90;
    }
    if (!ok) return {i, false, false};
  }
  return {size, true, false};
}

std::optional<std::size_t> find_invalid(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const Scan found = scan(text, at);
    if (!found.valid) return at;
    at += found.size;
  }
  return std::nullopt;
}

char32_t decode(std::string_view text, std::size_t& position) {
  const auto byte = [&](std::size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[position + i])); };
  const char32_t first = byte(0);
  char32_t c = first;
  if (first < 0x80) {
    position += 1;
  } else if (first < 0xE0) {
    c = (first & 0x1F) << 6 | (byte(1) & 0x3F);
    position += 2;
  } else if (first < 0xF0) {
    c = (first & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    position += 3;
  } else {
    c = (first & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
    position += 4;
  }
  return c;
}

char32_t decode_before(std::string_view text, std::size_t position) {
  std::size_t begin = position - 1;
  while (begin > 0 && is_continuation(text[begin])) --begin;
  return decode(text, begin);
}

void append(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if ((c >= 0xD800 && c <= 0xDFFF) || c > 0x10FFFF) {
    out += kReplacement;
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

std::size_t append_lossy(std::string& out, std::string_view bytes, bool final) {
  std::size_t at = 0;
  while (at < bytes.size()) {
    const Scan found = scan(bytes, at);
    if (found.incomplete && !final) break;
    out.append(found.valid ? bytes.substr(at, found.size) : kReplacement);
    at += found.size;
  }
  return at;
}

}  // namespace millrace::utf8
