#include <algorithm>
#include <vector>

#include "millrace/base/utf8.h"
#include "millrace/tokenizer/normalizer.h"
#include "millrace/tokenizer/unicode.h"

namespace millrace {
namespace {

constexpr char32_t kHangulBase = 0xAC00, kHangulL = 0x1100, kHangulV = 0x1161, kHangulT = 0x11A7;
constexpr char32_t kNumL = 19, kNumV = 21, kNumT = 28;

struct Character {
  char32_t c;
  uint8_t combining_class;
  std::size_t source;
};

// A starter and the marks behind it, kept until it is known that nothing more joins them.
class Composer {
 public:
  Composer(NormalizedBuilder& out, bool compose) : out_(out), compose_(compose) {}

  void add(char32_t c, std::size_t source) {
    const uint8_t combining_class = unicode::combining_class(c);
    if (combining_class == 0) {
      finish_marks();
      // A starter joins the one before it when nothing is left between them.
      if (compose_ && segment_.size() == 1 && segment_[0].combining_class == 0) {
        if (const std::optional<char32_t> joined = join(segment_[0].c, c)) {
          segment_[0].c = *joined;
          return;
        }
      }
      flush();
    } else {
      marks_pending_ = true;
    }
    segment_.push_back({c, combining_class, source});
  }

  void finish() {
    finish_marks();
    flush();
  }

 private:
  static std::optional<char32_t> join(char32_t a, char32_t b) {
    if (a >= kHangulL && a < kHangulL + kNumL && b >= kHangulV && b < kHangulV + kNumV) {
      return kHangulBase + ((a - kHangulL) * kNumV + (b - kHangulV)) * kNumT;
    }
    if (a >= kHangulBase && a < kHangulBase + kNumL * kNumV * kNumT && (a - kHangulBase) % kNumT == 0 && b > kHangulT &&
        b < kHangulT + kNumT) {
      return a + (b - kHangulT);
    }
    return unicode::compose(a, b);
  }

  void finish_marks() {
    if (!marks_pending_) return;
    marks_pending_ = false;
    const bool has_starter = segment_[0].combining_class == 0;
    std::stable_sort(segment_.begin() + (has_starter ? 1 : 0), segment_.end(),
                     [](const Character& a, const Character& b) { return a.combining_class < b.combining_class; });
    if (!compose_ || !has_starter) return;
    std::size_t kept = 1;
    uint8_t last_class = 0;
    for (std::size_t i = 1; i < segment_.size(); ++i) {
      const Character mark = segment_[i];
      const bool blocked = kept > 1 && last_class >= mark.combining_class;
      const std::optional<char32_t> joined = blocked ? std::nullopt : unicode::compose(segment_[0].c, mark.c);
      if (joined) {
        segment_[0].c = *joined;
        continue;
      }
      last_class = mark.combining_class;
      segment_[kept++] = mark;
    }
    segment_.resize(kept);
  }

  void flush() {
    for (const Character& character : segment_) out_.add(character.c, character.source);
    segment_.clear();
  }

  NormalizedBuilder& out_;
  bool compose_, marks_pending_ = false;
  std::vector<Character> segment_;
};

}  // namespace

void normalize(NormalizedText& text, NormalizationForm form) {
  if (std::all_of(text.text.begin(), text.text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; })) return;
  const bool compatible = form == NormalizationForm::kKC || form == NormalizationForm::kKD;
  NormalizedBuilder builder(text);
  Composer composer(builder, form == NormalizationForm::kC || form == NormalizationForm::kKC);
  for (std::size_t at = 0; at < text.text.size();) {
    const std::size_t source = at;
    const char32_t c = utf8::decode(text.text, at);
    if (c >= kHangulBase && c < kHangulBase + kNumL * kNumV * kNumT) {
      const char32_t index = c - kHangulBase;
      composer.add(kHangulL + index / (kNumV * kNumT), source);
      composer.add(kHangulV + index / kNumT % kNumV, source);
      if (index % kNumT != 0) composer.add(kHangulT + index % kNumT, source);
      continue;
    }
    std::u32string_view parts = compatible ? unicode::compatible_decomposition(c) : std::u32string_view{};
    if (parts.empty()) parts = unicode::canonical_decomposition(c);
    if (parts.empty()) {
      composer.add(c, source);
    } else {
      for (const char32_t part : parts) composer.add(part, source);
    }
  }
  composer.finish();
  text = builder.take();
}

}  // namespace millrace
