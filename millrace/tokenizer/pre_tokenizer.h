#pragma once

#include <memory>
#include <string_view>

#include "millrace/base/json.h"
#include "millrace/base/status.h"
#include "millrace/tokenizer/function_ref.h"

namespace millrace {

// Cuts normalized text into the pieces that the model sees one by one. Pieces stream from stage to stage: nothing of the
// size of the text is held.
class PreTokenizer {
 public:
  // `at_start`: the piece begins where the text does. The view is valid during the call. Empty pieces are not given.
  using OnPiece = FunctionRef<Status(std::string_view piece, bool at_start)>;

  virtual ~PreTokenizer() = default;
  virtual Status apply(std::string_view piece, bool at_start, OnPiece on_piece) const = 0;
  virtual bool needs_start() const { return false; }  // whether at_start matters
  virtual bool is_byte_level() const { return false; }
};

// Reads the "pre_tokenizer" of a tokenizer.json; null gives null.
Result<std::unique_ptr<PreTokenizer>> make_pre_tokenizer(const json::value& description, int depth = 0);

// How deep the parts of a tokenizer may be nested, and how many a sequence may have.
constexpr int kPartDepthMax = 8;
constexpr std::size_t kPartsMax = 64;

}  // namespace millrace
