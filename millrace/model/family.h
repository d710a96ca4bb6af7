#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/model/network.h"

namespace millrace {

// A model family as data: the parsed and checked content of families/<name>.json. docs/add-a-model.md documents the language,
// family_schema.cc is its list of words, expression.h the grammar of its expressions.
class Family {
 public:
  // Unknown words, missing words and words of the wrong kind are errors that name their place in the file, "layers[0].mlp.gate".
  // `file_name` is for messages.
  static Result<Family> parse(std::string_view json_text, std::string_view file_name);

  const std::string& name() const { return name_; }
  const std::string& file_name() const { return file_name_; }
  const std::vector<std::string>& architectures() const { return architectures_; }            // Hugging Face config.json "architectures"
  const std::vector<std::string>& gguf_architectures() const { return gguf_architectures_; }  // GGUF "general.architecture"
  const json::object& description() const { return description_; }

 private:
  std::string name_, file_name_;
  std::vector<std::string> architectures_, gguf_architectures_;
  json::object description_;
};

// The families compiled into the binary.
const std::vector<Family>& builtin_families();

// Chooses: `family_file` if given, else millrace_family.json beside the weights, else the built-in one whose architecture the
// checkpoint names. No match: an error with the architecture found and the ones known.
Result<Family> choose_family(const Checkpoint& checkpoint, const std::optional<std::string>& family_file);

// Resolves a family on a checkpoint: evaluates its expressions on the config, finds its tensors, checks their shapes.
// Missing, unused and mis-shaped tensors are errors that name them. `checkpoint` must outlive the network.
Result<Network> bind_network(const Family& family, const Checkpoint& checkpoint);

}  // namespace millrace
