#include "millrace/formats/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <numeric>
#include <utility>

#include "millrace/formats/gguf_config.h"
#include "millrace/formats/gguf_split_name.h"
#include "millrace/formats/python_json.h"
#include "millrace/formats/quoted_name.h"
#include "millrace/formats/safetensors.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxConfigBytes = std::size_t{16} << 20;
constexpr std::size_t kMaxTemplateBytes = std::size_t{4} << 20;
constexpr std::size_t kMaxTokenizerBytes = std::size_t{256} << 20;

// What a directory holds, as far as choosing its format needs.
struct DirectoryListing {
  std::vector<std::string> ggufs;              // whole files, and the first file of each split set
  std::vector<std::string> pickles;            // *.bin, *.pt, *.pth
  std::vector<std::string> other_safetensors;  // not model.safetensors nor a shard of an index
  bool has_config = false;
  bool has_safetensors = false;
};

Result<DirectoryListing> list_directory(const std::string& path) {
  DirectoryListing listing;
  std::error_code error;
  fs::directory_iterator entries(path, error);
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    const std::string name = entries->path().filename().string();
    const std::string extension = entries->path().extension().string();
    if (name == "config.json") listing.has_config = true;
    if (name == "model.safetensors" || name == "model.safetensors.index.json") listing.has_safetensors = true;
    if (extension == ".safetensors" && name != "model.safetensors") listing.other_safetensors.push_back(name);
    if (extension == ".bin" || extension == ".pt" || extension == ".pth") listing.pickles.push_back(name);
    // A projector ("mmproj-...") accompanies a model and is none itself.
    if (extension == ".gguf" && !name.starts_with("mmproj")) {
      const auto split = parse_gguf_split_name(name);
      if (!split || split->number == 1) listing.ggufs.push_back(name);
    }
  }
  if (error) return Status::unavailable(fmt::format("{}: cannot list: {}", path, error.message()));
  for (auto* names : {&listing.ggufs, &listing.pickles, &listing.other_safetensors}) std::ranges::sort(*names);
  return listing;
}

Status nothing_to_open(const std::string& path, const DirectoryListing& listing) {
  if (listing.ggufs.size() > 1) {
    return Status::invalid_argument(
        fmt::format("{}: holds {} GGUF models; name one of them: {}", path, listing.ggufs.size(), fmt::join(listing.ggufs, ", ")));
  }
  std::string found;
  if (!listing.other_safetensors.empty()) found = fmt::format("; found {}", fmt::join(listing.other_safetensors, ", "));
  if (!listing.pickles.empty()) {
    found = fmt::format("; found {}: Python pickles are not read because loading one runs code, convert them to safetensors",
                        fmt::join(listing.pickles, ", "));
  }
  return Status::not_found(fmt::format("{}: looked for model.safetensors, model.safetensors.index.json or a .gguf file{}", path,
                                       found.empty() ? std::string("; there is none") : found));
}

Result<json::object> read_json_object(const std::string& path) {
  MR_ASSIGN_OR_RETURN(const std::string text, read_text_file(path, kMaxConfigBytes));
  Result<json::value> value = parse_json(without_python_numbers(text));
  if (!value.is_ok()) return value.status().with_context(path);
  if (!value->is_object()) return Status::invalid_argument(fmt::format("{}: expected a JSON object", path));
  return std::move(value->get_object());
}

Result<std::optional<std::string>> read_optional_text(const fs::path& path, std::size_t max_bytes) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return std::optional<std::string>();
  MR_ASSIGN_OR_RETURN(std::string text, read_text_file(path.string(), max_bytes));
  return std::optional<std::string>(std::move(text));
}

// tokenizer_config.json's chat_template: a string, or a list of named ones.
std::optional<std::string> template_of(const json::object& tokenizer_config) {
  const json::value* value = tokenizer_config.if_contains("chat_template");
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return std::string(value->get_string());
  if (!value->is_array()) return std::nullopt;
  for (const auto& item : value->get_array()) {
    const json::object* named = item.if_object();
    if (named == nullptr) continue;
    const json::value* name = named->if_contains("name");
    const json::value* text = named->if_contains("template");
    if (name && name->is_string() && name->get_string() == "default" && text && text->is_string()) return std::string(text->get_string());
  }
  return std::nullopt;
}

}  // namespace

Result<Checkpoint> Checkpoint::open(const std::string& path) {
  Checkpoint checkpoint;
  checkpoint.path_ = path;
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) return Status::not_found(fmt::format("{}: no such file or directory", path));
  if (!fs::is_directory(status)) {
    if (path.ends_with(".safetensors")) {
      return Status::invalid_argument(fmt::format("{}: a safetensors file alone lacks the configuration; name its directory", path));
    }
    MR_RETURN_IF_ERROR(checkpoint.open_gguf(path));
    return checkpoint;
  }
  MR_ASSIGN_OR_RETURN(const DirectoryListing listing, list_directory(path));
  if (listing.has_safetensors) {
    if (!listing.has_config)
      return Status::not_found(fmt::format("{}: has safetensors but no config.json, which says how to read them", path));
    MR_RETURN_IF_ERROR(checkpoint.open_hugging_face());
    return checkpoint;
  }
  if (listing.ggufs.size() != 1) return nothing_to_open(path, listing);
  MR_RETURN_IF_ERROR(checkpoint.open_gguf((fs::path(path) / listing.ggufs[0]).string()));
  return checkpoint;
}

Status Checkpoint::open_gguf(const std::string& file) {
  MR_ASSIGN_OR_RETURN(GgufFile opened, GgufFile::open(file));
  gguf_ = std::make_unique<GgufFile>(std::move(opened));
  tensors_.assign(gguf_->tensors().begin(), gguf_->tensors().end());
  Result<json::object> config = gguf_config(*gguf_);
  if (!config.is_ok()) return config.status().with_context(file);
  config_ = std::move(config).value();
  if (const auto text = gguf_->string("tokenizer.chat_template")) chat_template_ = std::string(*text);
  return index_tensors();
}

Status Checkpoint::open_hugging_face() {
  const fs::path base(path_);
  MR_ASSIGN_OR_RETURN(config_, read_json_object((base / "config.json").string()));
  std::error_code ignored;
  if (const fs::path generation = base / "generation_config.json"; fs::exists(generation, ignored)) {
    MR_ASSIGN_OR_RETURN(generation_config_, read_json_object(generation.string()));
  }
  MR_RETURN_IF_ERROR(read_tokenizer_files());
  MR_ASSIGN_OR_RETURN(std::vector<SafetensorsFile> files, open_safetensors(path_));
  for (auto& file : files) {
    std::ranges::move(std::move(file).take_tensors(), std::back_inserter(tensors_));
    files_.push_back(std::move(file).take_file());
  }
  MR_RETURN_IF_ERROR(read_modules());
  return index_tensors();
}

Status Checkpoint::read_tokenizer_files() {
  const fs::path base(path_);
  MR_ASSIGN_OR_RETURN(tokenizer_json_, read_optional_text(base / "tokenizer.json", kMaxTokenizerBytes));
  MR_ASSIGN_OR_RETURN(tokenizer_config_json_, read_optional_text(base / "tokenizer_config.json", kMaxConfigBytes));
  MR_ASSIGN_OR_RETURN(chat_template_, read_optional_text(base / "chat_template.jinja", kMaxTemplateBytes));
  if (chat_template_ || !tokenizer_config_json_) return Status::ok();
  MR_ASSIGN_OR_RETURN(const json::object tokenizer_config, read_json_object((base / "tokenizer_config.json").string()));
  chat_template_ = template_of(tokenizer_config);
  return Status::ok();
}

Status Checkpoint::read_modules() {
  constexpr std::size_t kModulesMax = 64;
  const fs::path base(path_), file = base / "modules.json";
  std::error_code ignored;
  if (const fs::path sentence = base / "sentence_bert_config.json"; fs::exists(sentence, ignored)) {
    MR_ASSIGN_OR_RETURN(sentence_config_, read_json_object(sentence.string()));
  }
  if (!fs::exists(file, ignored)) return Status::ok();
  MR_ASSIGN_OR_RETURN(const std::string text, read_text_file(file.string(), kMaxConfigBytes));
  const Result<json::value> list = parse_json(text);
  if (!list.is_ok()) return list.status().with_context(file.string());
  if (!list->is_array() || list->get_array().size() > kModulesMax) {
    return Status::invalid_argument(fmt::format("{}: expected a list of at most {} modules", file.string(), kModulesMax));
  }
  for (const json::value& item : list->get_array()) {
    const json::object* entry = item.if_object();
    const json::value *type = entry != nullptr ? entry->if_contains("type") : nullptr,
                      *path = entry != nullptr ? entry->if_contains("path") : nullptr;
    if (type == nullptr || path == nullptr || !type->is_string() || !path->is_string()) {
      return Status::invalid_argument(
          fmt::format("{}: expected \"type\" and \"path\" of every module, found {}", file.string(), json::serialize(item).substr(0, 100)));
    }
    CheckpointModule module{std::string(type->get_string()), std::string(path->get_string()), {}};
    // A plain name: a module does not reach out of the model's directory.
    if (module.path.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos || module.path.starts_with('.')) {
      return Status::invalid_argument(fmt::format("{}: {} is no plain name of a directory", file.string(), quoted_name(module.path)));
    }
    if (!module.path.empty() && fs::is_directory(base / module.path, ignored)) {
      if (const fs::path config = base / module.path / "config.json"; fs::exists(config, ignored)) {
        MR_ASSIGN_OR_RETURN(module.config, read_json_object(config.string()));
      }
      if (fs::exists(base / module.path / "model.safetensors", ignored)) {
        MR_ASSIGN_OR_RETURN(std::vector<SafetensorsFile> files, open_safetensors((base / module.path).string()));
        for (auto& weights : files) {
          for (SourceTensor& tensor : std::move(weights).take_tensors()) {
            tensor.name = module.path + "." + tensor.name;
            tensors_.push_back(std::move(tensor));
          }
          files_.push_back(std::move(weights).take_file());
        }
      }
    }
    modules_.push_back(std::move(module));
  }
  return Status::ok();
}

Status Checkpoint::index_tensors() {
  by_name_.resize(tensors_.size());
  std::iota(by_name_.begin(), by_name_.end(), std::size_t{0});
  const auto name = [this](std::size_t i) -> const std::string& { return tensors_[i].name; };
  std::ranges::sort(by_name_, {}, name);
  const auto twin = std::ranges::adjacent_find(by_name_, {}, name);
  if (twin == by_name_.end()) return Status::ok();
  return Status::data_loss(fmt::format("{}: tensor {} is in two files", path_, quoted_name(name(*twin))));
}

const SourceTensor* Checkpoint::find(std::string_view name) const {
  const auto name_at = [this](std::size_t i) -> std::string_view { return tensors_[i].name; };
  const auto found = std::ranges::lower_bound(by_name_, name, {}, name_at);
  return found != by_name_.end() && name_at(*found) == name ? &tensors_[*found] : nullptr;
}

std::vector<std::string> Checkpoint::files() const {
  std::vector<std::string> paths;
  for (const auto& file : mapped()) paths.push_back(file.path());
  return paths;
}

std::vector<FileIdentity> Checkpoint::file_identities() const {
  std::vector<FileIdentity> identities;
  for (const auto& file : mapped()) identities.push_back(file.identity());
  return identities;
}

int64_t Checkpoint::file_bytes() const {
  int64_t bytes = 0;
  for (const auto& file : mapped()) bytes += static_cast<int64_t>(file.bytes().size());
  return bytes;
}

int64_t Checkpoint::tensor_bytes() const {
  int64_t bytes = 0;
  for (const auto& tensor : tensors_) bytes += static_cast<int64_t>(tensor.data.size());
  return bytes;
}

const MappedFile* Checkpoint::file_of(const SourceTensor& tensor) const {
  for (const auto& file : mapped()) {
    const std::byte* begin = file.bytes().data();
    // std::less: the pointers are of different mappings, for which < alone promises nothing.
    if (!std::less<>()(tensor.data.data(), begin) && std::less<>()(tensor.data.data(), begin + file.bytes().size())) return &file;
  }
  return nullptr;
}

void Checkpoint::drop_pages(const SourceTensor& tensor) const {
  if (const MappedFile* file = file_of(tensor)) file->drop(tensor.data);
}

void Checkpoint::drop_all_pages() const {
  for (const auto& file : mapped()) file.drop(file.bytes());
}

void Checkpoint::will_need(const SourceTensor& tensor) const {
  if (const MappedFile* file = file_of(tensor)) file->will_need(tensor.data);
}

}  // namespace millrace
