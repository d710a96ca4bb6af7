#include "millrace/tokenizer/added_tokens.h"

#include <algorithm>
#include <utility>

#include "millrace/base/utf8.h"
#include "millrace/tokenizer/unicode.h"

namespace millrace {
namespace {

std::size_t space_begin(std::string_view text, std::size_t end, std::size_t lowest) {
  while (end > lowest) {
    const char32_t c = utf8::decode_before(text, end);
    if (!unicode::is_white_space(c)) break;
    end -= utf8::encoded_size(c);
  }
  return std::max(end, lowest);
}

std::size_t space_end(std::string_view text, std::size_t begin) {
  while (begin < text.size()) {
    std::size_t next = begin;
    if (!unicode::is_white_space(utf8::decode(text, next))) break;
    begin = next;
  }
  return begin;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<Pattern> patterns) : patterns_(std::move(patterns)) {
  std::vector<std::pair<std::string_view, int32_t>> entries;
  // Of equal patterns the first one counts, and the trie keeps the last.
  for (std::size_t i = patterns_.size(); i-- > 0;) entries.emplace_back(patterns_[i].text, static_cast<int32_t>(i));
  trie_ = ByteTrie(std::move(entries));
}

Status AddedTokenMatcher::split(std::string_view text, const IsPlain* is_plain, OnText on_text, OnToken on_token) const {
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    if (!trie_.may_start_with(static_cast<unsigned char>(text[at]))) {
      ++at;
      continue;
    }
    const Pattern* found = nullptr;
    trie_.for_each_prefix(text.substr(at), [&](std::size_t size, int32_t index) {
      const Pattern& pattern = patterns_[static_cast<std::size_t>(index)];
      if (pattern.control && is_plain != nullptr && (*is_plain)(at, at + size)) return;
      found = &pattern;
    });
    if (found == nullptr) {
      ++at;
      continue;
    }
    std::size_t begin = at, end = at + found->text.size();
    at = end;
    const AddedToken& token = found->token;
    if (token.single_word) {
      std::size_t next = end;
      const bool word_before = begin > 0 && unicode::is_plain_word(utf8::decode_before(text, begin));
      const bool word_behind = end < text.size() && unicode::is_plain_word(utf8::decode(text, next));
      if (word_before || word_behind) continue;
    }
    if (token.lstrip) begin = space_begin(text, begin, done);
    if (token.rstrip) end = space_end(text, end);
    begin = std::max(begin, done);
    if (done < begin) MR_RETURN_IF_ERROR(on_text(done, begin));
    MR_RETURN_IF_ERROR(on_token(token.id));
    done = std::max(done, end);
  }
  return done < text.size() ? on_text(done, text.size()) : Status::ok();
}

}  // namespace millrace
