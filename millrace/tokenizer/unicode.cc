#include "millrace/tokenizer/unicode.h"

#include <algorithm>
#include <iterator>

#include "millrace/base/utf8.h"

namespace millrace::unicode {
namespace {

struct CharRecord {
  uint8_t category, flags, combining_class, grapheme_break;
};
struct CharMapping {
  char32_t from;
  uint16_t offset, size;  // in the pool of the same name
};
struct CharComposition {
  char32_t first, second, composed;
};

struct ScriptRange {
  char32_t first;  // up to the first of the next range
  uint8_t script;
};

#include "millrace/tokenizer/unicode_scripts.inc"
#include "millrace/tokenizer/unicode_tables.inc"

const CharRecord& record(char32_t c) {
  if (c > 0x10FFFF) return kRecords[0];
  return kRecords[kBlocks[kPages[c >> 7]][c & 127]];
}

template <std::size_t kSize>
std::u32string_view find_mapping(const CharMapping (&table)[kSize], const char32_t* pool, char32_t c) {
  const auto* found = std::lower_bound(std::begin(table), std::end(table), c, [](const CharMapping& m, char32_t x) { return m.from < x; });
  if (found == std::end(table) || found->from != c) return {};
  return {pool + found->offset, found->size};
}

}  // namespace

Category category(char32_t c) { return static_cast<Category>(record(c).category); }
bool has_flag(char32_t c, Flag flag) { return (record(c).flags & flag) != 0; }
bool is_plain_word(char32_t c) {
  if (c == 0x200C || c == 0x200D) return true;
  return has_flag(c, kWord) && category(c) != kNo;
}
GraphemeBreak grapheme_break(char32_t c) { return static_cast<GraphemeBreak>(record(c).grapheme_break); }
uint8_t combining_class(char32_t c) { return record(c).combining_class; }

uint8_t script(char32_t c) {
  const auto* after =
      std::upper_bound(std::begin(kScripts), std::end(kScripts), c, [](char32_t x, const ScriptRange& r) { return x < r.first; });
  return std::prev(after)->script;
}

std::u32string_view canonical_decomposition(char32_t c) {
  return c < 0xC0 ? std::u32string_view{} : find_mapping(kCanonical, kCanonicalPool, c);
}
std::u32string_view compatible_decomposition(char32_t c) {
  return c < 0xA0 ? std::u32string_view{} : find_mapping(kCompatible, kCompatiblePool, c);
}
std::u32string_view lower_case(char32_t c) { return find_mapping(kLower, kLowerPool, c); }

std::optional<char32_t> compose(char32_t first, char32_t second) {
  const auto less = [](const CharComposition& a, std::pair<char32_t, char32_t> b) { return std::pair(a.first, a.second) < b; };
  const auto* found = std::lower_bound(std::begin(kCompositions), std::end(kCompositions), std::pair(first, second), less);
  if (found == std::end(kCompositions) || found->first != first || found->second != second) return std::nullopt;
  return found->composed;
}

// Unicode Standard Annex 29, rules GB3 to GB13 without GB9c (conjuncts of Indic scripts).
std::size_t grapheme_end(std::string_view text, std::size_t begin) {
  using enum GraphemeBreak;
  std::size_t at = begin;
  char32_t c = utf8::decode(text, at);
  GraphemeBreak previous = grapheme_break(c);
  bool after_pictograph = has_flag(c, kPictographic), joined = false;
  bool odd_indicators = previous == kRegionalIndicator;
  while (at < text.size()) {
    std::size_t next = at;
    c = utf8::decode(text, next);
    const GraphemeBreak now = grapheme_break(c);
    const bool pictograph = has_flag(c, kPictographic);
    bool keep;
    if (previous == kCr) {
      keep = now == kLf;
    } else if (previous == kLf || previous == kControl || now == kCr || now == kLf || now == kControl) {
      keep = false;
    } else {
      keep = (previous == kL && (now == kL || now == kV || now == kLv || now == kLvt)) ||
             ((previous == kLv || previous == kV) && (now == kV || now == kT)) || ((previous == kLvt || previous == kT) && now == kT) ||
             now == kExtend || now == kZwj || now == kSpacingMark || previous == kPrepend || (joined && pictograph) ||
             (odd_indicators && now == kRegionalIndicator);
    }
    if (!keep) break;
    joined = after_pictograph && now == kZwj;
    after_pictograph = pictograph || (after_pictograph && now == kExtend);
    odd_indicators = now == kRegionalIndicator && !odd_indicators;
    previous = now;
    at = next;
  }
  return at;
}

}  // namespace millrace::unicode
