#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/base/status.h"

namespace millrace {

// A text on its way through the normalizers and, where asked for, the place each of its bytes came from.
struct NormalizedText {
  std::string text;
  std::vector<uint32_t> origins;  // [text.size()] offset in the text before normalization; empty unless tracked
  bool tracked = false;
  std::size_t max_bytes = 0;  // a normalizer that makes more of the text is an error

  static NormalizedText of(std::string_view text, bool tracked);
};

// Rewrites the characters of a text: composition, case, spaces.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual Status apply(NormalizedText& text) const = 0;
};

// Reads the "normalizer" of a tokenizer.json; null gives null.
Result<std::unique_ptr<Normalizer>> make_normalizer(const json::value& description, int depth = 0);

// Writes a text from an older one, with or without origins.
class NormalizedBuilder {
 public:
  explicit NormalizedBuilder(const NormalizedText& source);
  // `source_offset` lies in the older text.
  void add(std::string_view bytes, std::size_t source_offset);
  void add(char32_t c, std::size_t source_offset);
  Status check_size() const;  // an error once the text is larger than its bound
  NormalizedText take();

 private:
  const NormalizedText& source_;
  NormalizedText result_;
};

// Unicode Standard Annex 15 over the older decompositions that Hugging Face's crate carries.
enum class NormalizationForm { kC, kD, kKC, kKD };
void normalize(NormalizedText& text, NormalizationForm form);

}  // namespace millrace
