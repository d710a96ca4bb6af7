#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/tokenizer/normalizer.h"

namespace millrace {

// SentencePiece's normalization rules as a model carries them: a double-array trie (darts-clone) from a character sequence
// to the offset of its replacement in a pool of zero-terminated strings.
class PrecompiledCharsmap final : public Normalizer {
 public:
  // The blob: u32 size of the trie in bytes, the trie's u32 units, the pool; little endian. Untrusted.
  static Result<std::unique_ptr<PrecompiledCharsmap>> parse(std::string_view blob);
  static Result<std::unique_ptr<PrecompiledCharsmap>> parse_base64(std::string_view text);

  Status apply(NormalizedText& text) const override;

 private:
  std::optional<std::string_view> find(std::string_view chunk) const;

  std::vector<uint32_t> units_;
  std::string pool_;
};

}  // namespace millrace
