#include "millrace/tokenizer/precompiled_charsmap.h"

#include <fmt/format.h>

#include "millrace/base/utf8.h"
#include "millrace/tokenizer/unicode.h"

namespace millrace {
namespace {

// Only clusters shorter than this are looked up whole, then each of their characters.
constexpr std::size_t kClusterBytesMax = 6;

uint32_t read_u32(std::string_view bytes, std::size_t at) {
  uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i) value |= static_cast<uint32_t>(static_cast<unsigned char>(bytes[at + i])) << (8 * i);
  return value;
}

std::optional<std::string> decode_base64(std::string_view text) {
  while (text.ends_with('=')) text.remove_suffix(1);
  std::string out;
  uint32_t bits = 0;
  int num_bits = 0;
  for (const char c : text) {
    uint32_t value;
    if (c >= 'A' && c <= 'Z')
      value = static_cast<uint32_t>(c - 'A');
    else if (c >= 'a' && c <= 'z')
      value = static_cast<uint32_t>(c - 'a' + 26);
    else if (c >= '0' && c <= '9')
      value = static_cast<uint32_t>(c - '0' + 52);
    else if (c == '+')
      value = 62;
    else if (c == '/')
      value = 63;
    else
      return std::nullopt;
    bits = bits << 6 | value;
    num_bits += 6;
    if (num_bits >= 8) {
      num_bits -= 8;
      out += static_cast<char>(bits >> num_bits & 0xFF);
    }
  }
  return out;
}

}  // namespace

Result<std::unique_ptr<PrecompiledCharsmap>> PrecompiledCharsmap::parse(std::string_view blob) {
  if (blob.size() < 4) return Status::invalid_argument("precompiled_charsmap: shorter than its header");
  const std::size_t trie_bytes = read_u32(blob, 0);
  if (trie_bytes % 4 != 0 || trie_bytes > blob.size() - 4) {
    return Status::invalid_argument(fmt::format("precompiled_charsmap: a trie of {} bytes in a blob of {}", trie_bytes, blob.size()));
  }
  auto charsmap = std::make_unique<PrecompiledCharsmap>();
  for (std::size_t at = 4; at < 4 + trie_bytes; at += 4) charsmap->units_.push_back(read_u32(blob, at));
  charsmap->pool_ = blob.substr(4 + trie_bytes);
  if (const auto invalid = utf8::find_invalid(charsmap->pool_)) {
    return Status::invalid_argument(fmt::format("precompiled_charsmap: its strings are not UTF-8 at byte {}", *invalid));
  }
  return charsmap;
}

Result<std::unique_ptr<PrecompiledCharsmap>> PrecompiledCharsmap::parse_base64(std::string_view text) {
  const std::optional<std::string> blob = decode_base64(text);
  if (!blob) return Status::invalid_argument("precompiled_charsmap: not base64");
  return parse(*blob);
}

// The replacement of the shortest stored prefix of `chunk`. (The reference takes the first match, not the longest; a cluster
// whose first character has a rule of its own so loses the rest.) A unit holds: bits 0-7 label, bit 8 "has a value",
// bits 10-30 offset, bit 9 "offset in units of 256".
std::optional<std::string_view> PrecompiledCharsmap::find(std::string_view chunk) const {
  if (units_.empty()) return std::nullopt;
  const auto offset = [](uint32_t unit) -> std::size_t { return static_cast<std::size_t>(unit >> 10) << ((unit & 0x200) >> 6); };
  std::size_t at = offset(units_[0]);
  for (const char byte : chunk) {
    if (byte == 0) break;
    at ^= static_cast<unsigned char>(byte);
    if (at >= units_.size()) return std::nullopt;
    const uint32_t unit = units_[at];
    if ((unit & 0x800000FF) != static_cast<unsigned char>(byte)) return std::nullopt;
    at ^= offset(unit);
    if ((unit >> 8 & 1) == 0) continue;
    if (at >= units_.size()) return std::nullopt;
    const std::size_t begin = units_[at] & 0x7FFFFFFF;
    if (begin >= pool_.size()) return std::nullopt;
    // A value may point into a character of a hostile pool; then there is no rule.
    if (utf8::is_continuation(pool_[begin])) return std::nullopt;
    return std::string_view(pool_).substr(begin, std::min(pool_.find('\0', begin), pool_.size()) - begin);
  }
  return std::nullopt;
}

Status PrecompiledCharsmap::apply(NormalizedText& text) const {
  const std::string_view source = text.text;
  NormalizedBuilder builder(text);
  for (std::size_t at = 0; at < source.size();) {
    const std::size_t end = unicode::grapheme_end(source, at);
    if (end - at < kClusterBytesMax) {
      if (const auto replacement = find(source.substr(at, end - at))) {
        builder.add(*replacement, at);
        at = end;
        continue;
      }
    }
    while (at < end) {
      const std::size_t begin = at;
      utf8::decode(source, at);
      const std::string_view character = source.substr(begin, at - begin);
      const auto replacement = find(character);
      builder.add(replacement ? *replacement : character, begin);
    }
  }
  text = builder.take();
  return Status::ok();
}

}  // namespace millrace
