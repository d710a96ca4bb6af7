#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/base/status.h"

namespace millrace {

// One step from tokens to text, with the state of one text. Tokens arrive in parts, because a step that joins tokens makes
// one of the whole text, which may not wait for its end. What a step gives is certain: whatever comes later, it stays.
class DecoderStage {
 public:
  virtual ~DecoderStage() = default;
  // A part of a token; `ends`: its last. A token may be empty.
  virtual void push(std::string_view part, bool ends) = 0;
  // No token follows.
  virtual void finish() = 0;
  void set_next(DecoderStage* next) { next_ = next; }

 protected:
  DecoderStage* next_ = nullptr;
};

// A run of byte tokens ("<0xE2>", ...) is text only if all of it is valid UTF-8; else each of its bytes is one U+FFFD.
enum class ByteRuns {
  kWhole,        // decided when the run ends, as Hugging Face `tokenizers` does for a whole text
  kAsCompleted,  // a complete character is given at once and stays; what follows it until the run ends is U+FFFD if it is no text
};

// The "decoder" of a tokenizer.json: makes the stages of a text.
class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual void add_stages(std::vector<std::unique_ptr<DecoderStage>>& stages, ByteRuns byte_runs) const = 0;
};

// Reads a description; null joins tokens with spaces.
Result<std::unique_ptr<Decoder>> make_decoder(const json::value& description, int depth = 0);

// The stages of one text, joined. The text is always valid UTF-8.
class DecoderChain {
 public:
  DecoderChain(const Decoder& decoder, ByteRuns byte_runs);
  void push_token(std::string_view token);
  void finish();
  std::string take();  // what became certain since the last call

 private:
  std::vector<std::unique_ptr<DecoderStage>> stages_;
  std::string text_;
};

}  // namespace millrace
