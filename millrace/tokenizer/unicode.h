#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

// Characters as Hugging Face `tokenizers` sees them: categories of Unicode 16.0, and decompositions, case mapping and BERT
// classes of the older tables its parts carry (tools/make_unicode_tables.py).
namespace millrace::unicode {

// General categories; a set of them is a mask of 1 << Category.
enum Category : uint8_t {
  kCn,
  kCc,
  kCf,
  kCo,
  kCs,
  kLu,
  kLl,
  kLt,
  kLm,
  kLo,
  kMn,
  kMc,
  kMe,
  kNd,
  kNl,
  kNo,
  kPc,
  kPd,
  kPs,
  kPe,
  kPi,
  kPf,
  kPo,
  kSm,
  kSc,
  kSk,
  kSo,
  kZs,
  kZl,
  kZp,
  kNumCategories
};
using CategoryMask = uint32_t;
constexpr CategoryMask bits(Category first, Category last) { return ((CategoryMask{2} << last) - 1) & ~((CategoryMask{1} << first) - 1); }
constexpr CategoryMask kLetter = bits(kLu, kLo), kMark = bits(kMn, kMe), kNumber = bits(kNd, kNo), kPunctuation = bits(kPc, kPo),
                       kSymbol = bits(kSm, kSo), kSeparator = bits(kZs, kZp), kOtherCategory = bits(kCn, kCs);

Category category(char32_t c);
inline bool is_in(char32_t c, CategoryMask mask) { return (mask >> category(c) & 1) != 0; }

enum Flag : uint8_t {
  kWord = 1,             // \w of the split patterns
  kBertPunctuation = 2,  // where Punctuation and BertPreTokenizer cut
  kBertControl = 4,      // what BertNormalizer's clean_text removes
  kBertAccent = 8,       // what BertNormalizer's strip_accents removes once decomposed
  kCombiningMark = 16,   // what StripAccents removes
  kWhiteSpace = 32,      // \s
  kPictographic = 64,
};
bool has_flag(char32_t c, Flag flag);
// \w of the engine that judges single words: joiners count, and superscripts do not.
bool is_plain_word(char32_t c);
inline bool is_white_space(char32_t c) { return has_flag(c, kWhiteSpace); }

enum class GraphemeBreak : uint8_t {
  kOther,
  kCr,
  kLf,
  kControl,
  kExtend,
  kZwj,
  kRegionalIndicator,
  kPrepend,
  kSpacingMark,
  kL,
  kV,
  kT,
  kLv,
  kLvt
};
GraphemeBreak grapheme_break(char32_t c);
// The end of the extended grapheme cluster that begins at `begin`.
std::size_t grapheme_end(std::string_view text, std::size_t begin);

// The class of a character that UnicodeScripts knows: its script, but one for all of Japanese, and 0 for what never begins a piece.
uint8_t script(char32_t c);

uint8_t combining_class(char32_t c);
// Full mappings of one character; empty when it maps to itself. Hangul syllables are composed and decomposed by arithmetic elsewhere.
std::u32string_view canonical_decomposition(char32_t c);
std::u32string_view compatible_decomposition(char32_t c);  // only where it differs from the canonical one
std::u32string_view lower_case(char32_t c);
std::optional<char32_t> compose(char32_t first, char32_t second);

}  // namespace millrace::unicode
