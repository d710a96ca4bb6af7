#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>

#include "millrace/model/expression.h"
#include "millrace/model/family.h"

namespace millrace {

// The configuration that a family's expressions see: config.json as published, or for a GGUF the metadata under the names that
// Hugging Face gives to the same things; over either, the fields that the family's "config" section defines.
class BindConfig {
 public:
  // `family` and `checkpoint` must outlive the result.
  static Result<BindConfig> make(const Family& family, const Checkpoint& checkpoint);
  BindConfig(BindConfig&&) = default;

  // Evaluates a word of the family file: a text is an expression, other scalars stand for themselves. `place` is where the word is
  // ("layers[0].count"); errors name it, the family file and the expression. An absent field gives AbsentValue.
  Result<ExpressionValue> evaluate(const json::value& word, std::string_view place, std::optional<int64_t> layer) const;

  // The same for an expression that is a default of the language.
  Result<ExpressionValue> evaluate(std::string_view expression, std::string_view place, std::optional<int64_t> layer) const;

  bool is_gguf() const { return is_gguf_; }
  const json::object& fields() const { return fields_; }
  std::string where(std::string_view place) const;  // "llama.json: layers[0].count"

 private:
  BindConfig(const Family& family, const Checkpoint& checkpoint) : family_(&family), checkpoint_(&checkpoint) {}
  Status read_gguf();
  Result<ExpressionValue> field(std::string_view name, std::optional<int64_t> layer) const;

  const Family* family_;
  const Checkpoint* checkpoint_;
  bool is_gguf_ = false;
  json::object fields_;
  mutable std::set<std::string, std::less<>>
      active_;                        // defined fields being evaluated: inside its own definition a name is the file's field
  mutable int64_t fuel_ = 3'000'000;  // evaluation steps; published families take some hundred a layer
};

}  // namespace millrace
