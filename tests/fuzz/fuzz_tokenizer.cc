// Any bytes as tokenizer.json: an error, or a tokenizer that takes any text and gives valid UTF-8 back, in one piece or token by token.
#include <string>
#include <string_view>
#include <vector>

#include "millrace/base/check.h"
#include "millrace/base/utf8.h"
#include "millrace/tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace millrace;
  const auto tokenizer = Tokenizer::from_json({reinterpret_cast<const char*>(data), size}, "");
  if (!tokenizer.is_ok()) return 0;
  constexpr std::string_view kTexts[] = {"Hello, world! 1234  <s></s> don't\n\n",
                                         "  \xE2\x96\x81\xC3\xA9\xF0\x9F\x98\x80 \xE4\xB8\xAD\xE6\x96\x87 e\xCC\x81 \xEF\xBB\xBF",
                                         "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
  for (const std::string_view text : kTexts) {
    for (const bool parse_special : {true, false}) {
      const TextRange plain[] = {{2, 9}};
      const auto ids = tokenizer->encode(
          text, {.plain_ranges = parse_special ? std::span(plain) : std::span<const TextRange>(), .parse_special = parse_special});
      if (!ids.is_ok()) continue;
      for (const int32_t id : *ids) MR_CHECK(id >= 0 && id < tokenizer->vocab_size(), "an id outside the vocabulary");
      const auto decoded = tokenizer->decode(*ids, false);
      MR_CHECK(decoded.is_ok() && !utf8::find_invalid(*decoded), "decoded text is no UTF-8");
      DetokenizerStream stream(*tokenizer, false);
      std::string streamed;
      for (const int32_t id : *ids) {
        const std::string piece = stream.push(id);
        MR_CHECK(!utf8::find_invalid(piece), "half a character was given out");
        streamed += piece;
      }
      streamed += stream.finish();
      // A run of byte tokens that is no text may keep its beginning in the stream.
      MR_CHECK(streamed == *decoded || decoded->find(utf8::kReplacement) != std::string::npos, "the stream differs from the whole");
    }
  }
  return 0;
}
