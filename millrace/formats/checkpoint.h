#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/base/mapped_file.h"
#include "millrace/base/status.h"
#include "millrace/formats/gguf.h"
#include "millrace/formats/source_tensor.h"

namespace millrace {

// One step of a sentence-transformers model: what its modules.json lists.
struct CheckpointModule {
  std::string type;     // a Python class: "sentence_transformers.models.Pooling"
  std::string path;     // its directory beside the weights, empty for the network's own; its tensors are named "<path>.<name>"
  json::object config;  // of its config.json; empty where there is none
};

// A published model, opened: its tensors by name, its configuration, and the texts beside them. Owns the mappings; every view it
// hands out stays valid while it lives, also after it was moved. Knows no model family: names and fields are as published.
// Immutable after open(), so any thread may read.
class Checkpoint {
 public:
  enum class Kind { kHuggingFace, kGguf };

  // `path` is a directory with config.json and safetensors, a directory with exactly one GGUF (or one split set), or a .gguf file.
  // Errors name what was looked for and what was found instead.
  static Result<Checkpoint> open(const std::string& path);

  Kind kind() const { return gguf_ ? Kind::kGguf : Kind::kHuggingFace; }
  const std::string& path() const { return path_; }

  // Hugging Face: config.json, where Python's NaN and Infinity are read as null and +-1e308.
  // GGUF: every metadata entry but arrays of more than 4096 elements, under its own key, e.g. "llama.block_count": 30.
  // Strings that are not UTF-8 are left out.
  const json::object& config() const { return config_; }
  const json::object& generation_config() const { return generation_config_; }  // generation_config.json, or empty; GGUF: empty

  const SourceTensor* find(std::string_view name) const;              // null when there is none
  std::span<const SourceTensor> tensors() const { return tensors_; }  // file order

  // Hugging Face: chat_template.jinja, else tokenizer_config.json's chat_template (a string, or of a list the one named "default").
  // GGUF: tokenizer.chat_template.
  const std::optional<std::string>& chat_template() const { return chat_template_; }

  // Hugging Face: the texts of these files, where they exist. GGUF: absent, its vocabulary is in gguf().
  const std::optional<std::string>& tokenizer_json() const { return tokenizer_json_; }
  const std::optional<std::string>& tokenizer_config_json() const { return tokenizer_config_json_; }

  // Hugging Face: modules.json, in its order; empty where there is none.
  std::span<const CheckpointModule> modules() const { return modules_; }
  const json::object& sentence_config() const { return sentence_config_; }  // sentence_bert_config.json, or empty

  const GgufFile* gguf() const { return gguf_.get(); }  // for the vocabulary arrays; null for Hugging Face

  std::vector<std::string> files() const;             // the weight files, for cache keys and messages
  std::vector<FileIdentity> file_identities() const;  // of those files, as they were when they were opened
  int64_t file_bytes() const;                         // of those files
  int64_t tensor_bytes() const;                       // of the tensors in them

  // Says that the tensor's pages are not needed soon (it was packed elsewhere). They are read again from the file when touched.
  void drop_pages(const SourceTensor& tensor) const;
  // The same of everything in the weight files.
  void drop_all_pages() const;
  // Says that the tensor is read next: the system may begin to fetch it.
  void will_need(const SourceTensor& tensor) const;

 private:
  Checkpoint() = default;
  Status open_gguf(const std::string& file);
  Status open_hugging_face();
  Status read_tokenizer_files();
  Status read_modules();
  Status index_tensors();
  const MappedFile* file_of(const SourceTensor& tensor) const;
  std::span<const MappedFile> mapped() const { return gguf_ ? gguf_->files() : std::span<const MappedFile>(files_); }

  std::string path_;
  std::unique_ptr<GgufFile> gguf_;
  std::vector<MappedFile> files_;  // Hugging Face only
  json::object config_, generation_config_, sentence_config_;
  std::optional<std::string> chat_template_, tokenizer_json_, tokenizer_config_json_;
  std::vector<CheckpointModule> modules_;
  std::vector<SourceTensor> tensors_;
  std::vector<std::size_t> by_name_;  // positions in tensors_, sorted by name
};

}  // namespace millrace
