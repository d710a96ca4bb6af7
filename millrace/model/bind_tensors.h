#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/model/bind_config.h"
#include "millrace/model/network.h"

namespace millrace {

// The tensors of a checkpoint by the names of a family file. Remembers which were used, so that none is forgotten.
class BindTensors {
 public:
  BindTensors(const Family& family, const Checkpoint& checkpoint, bool is_gguf);

  // A name word is a text or a list of alternatives, of which the first that the checkpoint has is meant. For a GGUF every name is
  // translated by the family's "gguf"."names". `scopes` are the alternatives of what comes before the name, with {layer} filled in; may be
  // empty. `suffix` is ".weight" or ".bias". Null where the checkpoint has none of them.
  const SourceTensor* find(const json::value& names, const json::value* scopes, std::optional<int64_t> layer,
                           std::string_view suffix) const;

  // The same for what there are `count` of. A name with `placeholder` in it ("{head}") names one tensor each, the placeholder giving way to
  // the number; a name without it names one tensor that holds all of them. Empty where the checkpoint has none; an error where it has some.
  Result<std::vector<const SourceTensor*>> find_each(const json::value& names, const json::value* scopes, std::optional<int64_t> layer,
                                                     std::string_view suffix, std::string_view placeholder, int64_t count) const;

  // For errors: the full names that find() looked for, as `"a.weight" or "b.weight"`.
  std::string wanted(const json::value& names, const json::value* scopes, std::optional<int64_t> layer, std::string_view suffix) const;

  // A use of `tensor`; `shape_words` says what the expected numbers are: "[num_heads * head_dim, hidden_size]".
  Status use(const SourceTensor& tensor, const std::vector<int64_t>& shape, std::string_view shape_words, std::string role,
             std::string transforms);
  void use_part(const SourceTensor& tensor, std::string role, std::string transforms);  // of a quantized matrix, checked by its encoding
  void set_aside(const SourceTensor& tensor, std::string role);                         // known, and rightly not read

  // The numbers of a whole tensor as f32.
  Result<std::vector<float>> read(const SourceTensor& tensor) const;

  // Error unless every tensor was used, matches one of the family's "ignore" patterns, or is one that quantizers add (`quantized`).
  Status check_all_used(bool quantized);

  // The full names that a word may mean, in the order in which find() tries them.
  std::vector<std::string> candidates(const json::value& names, const json::value* scopes, std::optional<int64_t> layer,
                                      std::string_view suffix) const;

  std::vector<Network::Binding> take_bindings() { return std::move(bindings_); }

 private:
  std::vector<std::string> translated(const json::value& word) const;

  const Family& family_;
  const Checkpoint& checkpoint_;
  bool is_gguf_;
  std::set<const SourceTensor*> used_;
  std::vector<Network::Binding> bindings_;
};

std::string shape_text(const std::vector<int64_t>& shape);  // "[2048, 1024]"

}  // namespace millrace
