#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "millrace/base/mapped_file.h"
#include "millrace/base/status.h"
#include "millrace/formats/source_tensor.h"

namespace millrace {

// One mapped safetensors file (github.com/huggingface/safetensors): an 8-byte header length, a JSON header, the tensors' bytes.
// Everything in it is untrusted; open() refuses headers over 100 MB or beyond the file, more than a million entries, names that occur
// twice, extents that do not fit dtype and shape, and tensors that overlap, leave holes or do not end with the file.
// Views into it stay valid while it lives, also after it was moved. Any thread may read.
class SafetensorsFile {
 public:
  static Result<SafetensorsFile> open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const MappedFile& file() const { return file_; }
  std::span<const SourceTensor> tensors() const { return tensors_; }                           // in the order of their bytes
  std::span<const std::pair<std::string, std::string>> metadata() const { return metadata_; }  // "__metadata__", often {"format": "pt"}

  // For the parts of a model: gives the mapping and the tensors away.
  MappedFile take_file() && { return std::move(file_); }
  std::vector<SourceTensor> take_tensors() && { return std::move(tensors_); }

 private:
  explicit SafetensorsFile(MappedFile file) : file_(std::move(file)) {}
  MappedFile file_;
  std::vector<SourceTensor> tensors_;
  std::vector<std::pair<std::string, std::string>> metadata_;
};

// The weights in a Hugging Face directory: model.safetensors, or the shards that model.safetensors.index.json names (plain file names
// in that same directory; every tensor it lists must be in the shard it names). Tensor names are not compared across shards here.
Result<std::vector<SafetensorsFile>> open_safetensors(const std::string& directory);

}  // namespace millrace
