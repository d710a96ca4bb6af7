#include "millrace/tokenizer/jinja/text.h"

#include <algorithm>

#include "millrace/tokenizer/jinja/unicode.h"

namespace millrace::jinja {
namespace {

bool is_ascii(std::string_view bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

}  // namespace

std::size_t Text::num_code_points() const { return ascii ? bytes.size() : count_code_points(bytes); }

std::size_t Text::byte_offset(std::size_t index) const {
  if (ascii) return std::min(index, bytes.size());
  std::size_t at = 0;
  for (; index > 0 && at < bytes.size(); --index) at += decode_at(bytes, at).num_bytes;
  return at;
}

TextPtr make_text(std::string bytes, bool user, bool markup) {
  auto text = std::make_shared<Text>();
  text->ascii = is_ascii(bytes);
  text->markup = markup;
  if (user && !bytes.empty()) text->user.push_back({0, bytes.size()});
  text->bytes = std::move(bytes);
  return text;
}

void TextBuilder::mark_user(std::size_t begin, std::size_t end) {
  if (begin == end) return;
  if (!user_.empty() && user_.back().end == begin)
    user_.back().end = end;
  else
    user_.push_back({begin, end});
}

void TextBuilder::append(std::string_view bytes, bool user) {
  budget_.charge_bytes(bytes.size());
  if (user) mark_user(bytes_.size(), bytes_.size() + bytes.size());
  bytes_ += bytes;
}

void TextBuilder::append(const Text& text, std::size_t begin, std::size_t end) {
  const std::size_t base = bytes_.size();
  append(std::string_view(text.bytes).substr(begin, end - begin));
  auto range = std::upper_bound(text.user.begin(), text.user.end(), begin, [](std::size_t at, const TextRange& r) { return at < r.end; });
  for (; range != text.user.end() && range->begin < end; ++range) {
    mark_user(base + std::max(range->begin, begin) - begin, base + std::min(range->end, end) - begin);
  }
}

void TextBuilder::append_escaped(const Text& text) {
  if (text.markup) return append(text);
  std::size_t copied = 0;
  for (std::size_t at = 0; at < text.bytes.size(); ++at) {
    std::string_view entity;
    switch (text.bytes[at]) {
      case '&': entity = "&amp;"; break;
      case '<': entity = "&lt;"; break;
      case '>': entity = "&gt;"; break;
      case '\'': entity = "&#39;"; break;
      case '"': entity = "&#34;"; break;
      default: continue;
    }
    append(text, copied, at);
    const auto range =
        std::upper_bound(text.user.begin(), text.user.end(), at, [](std::size_t v, const TextRange& r) { return v < r.end; });
    append(entity, range != text.user.end() && range->begin <= at);
    copied = at + 1;
  }
  append(text, copied, text.bytes.size());
}

TextPtr TextBuilder::finish(bool markup) {
  auto text = std::make_shared<Text>();
  text->ascii = is_ascii(bytes_);
  text->markup = markup;
  text->bytes = std::move(bytes_);
  text->user = std::move(user_);
  return text;
}

TextPtr slice_text(Budget& budget, const TextPtr& text, std::size_t begin, std::size_t end) {
  if (begin == 0 && end == text->bytes.size()) return text;
  TextBuilder builder(budget);
  if (begin < end) builder.append(*text, begin, end);
  return builder.finish(text->markup);
}

TextPtr converted_text(Budget& budget, const Text& original, std::string converted) {
  budget.charge_bytes(converted.size());
  auto text = std::make_shared<Text>();
  text->ascii = is_ascii(converted);
  text->markup = original.markup;
  if (original.ascii && text->ascii && converted.size() == original.bytes.size())
    text->user = original.user;
  else if (original.has_user() && !converted.empty())
    text->user.push_back({0, converted.size()});
  text->bytes = std::move(converted);
  return text;
}

}  // namespace millrace::jinja
