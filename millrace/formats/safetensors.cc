#include "millrace/formats/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>

#include "millrace/base/json.h"
#include "millrace/formats/quoted_name.h"
#include "millrace/formats/safetensors_header.h"

namespace millrace {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // as the reference implementation
constexpr std::size_t kMaxShards = 4096;
constexpr std::string_view kSingleName = "model.safetensors";
constexpr std::string_view kIndexName = "model.safetensors.index.json";

// Bytes that dtype and shape need; absent on overflow. The element count is held to 63 bits too, also beside a dimension of 0.
std::optional<int64_t> tensor_bytes(DType dtype, std::span<const int64_t> shape) {
  int64_t elements = 1, largest = 1;
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(largest, std::max<int64_t>(size, 1), &largest)) return std::nullopt;
    elements *= size;
  }
  if (!row_bytes(dtype, largest)) return std::nullopt;
  return row_bytes(dtype, elements);
}

std::string shape_text(std::span<const int64_t> shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

// Extents cover [0, data_bytes) exactly, each as long as its dtype and shape say. Sorts by place.
Status check_extents(std::vector<SafetensorsEntry>& entries, int64_t data_bytes) {
  std::ranges::sort(entries, {}, [](const SafetensorsEntry& entry) { return std::pair(entry.begin, entry.end); });
  int64_t covered = 0;
  const SafetensorsEntry* previous = nullptr;
  for (const auto& entry : entries) {
    const std::string name = quoted_name(entry.name);
    if (entry.end < entry.begin || entry.end > data_bytes) {
      return Status::data_loss(
          fmt::format("tensor {} is said to be bytes {} to {} of {} (is the file truncated?)", name, entry.begin, entry.end, data_bytes));
    }
    const auto bytes = tensor_bytes(entry.dtype, entry.shape);
    if (!bytes) return Status::data_loss(fmt::format("tensor {}: the size of shape {} overflows 63 bits", name, shape_text(entry.shape)));
    if (*bytes != entry.end - entry.begin) {
      return Status::data_loss(fmt::format("tensor {}: {} {} needs {} bytes, data_offsets give it {}", name, dtype_name(entry.dtype),
                                           shape_text(entry.shape), *bytes, entry.end - entry.begin));
    }
    if (entry.begin < covered) return Status::data_loss(fmt::format("tensors {} and {} overlap", quoted_name(previous->name), name));
    if (entry.begin > covered)
      return Status::data_loss(fmt::format("bytes {} to {} before tensor {} belong to no tensor", covered, entry.begin, name));
    covered = entry.end;
    previous = &entry;
  }
  if (covered != data_bytes)
    return Status::data_loss(fmt::format("the tensors end at byte {} of the data, the file has {}", covered, data_bytes));
  return Status::ok();
}

Status check_unique(std::span<const SafetensorsEntry> entries) {
  std::vector<std::string_view> names;
  names.reserve(entries.size());
  for (const auto& entry : entries) names.push_back(entry.name);
  std::ranges::sort(names);
  const auto twin = std::ranges::adjacent_find(names);
  if (twin != names.end()) return Status::data_loss(fmt::format("tensor {} occurs twice", quoted_name(*twin)));
  return Status::ok();
}

Result<std::pair<SafetensorsHeader, std::span<const std::byte>>> parse(std::span<const std::byte> bytes) {
  uint64_t header_bytes = 0;
  if (bytes.size() < sizeof header_bytes)
    return Status::data_loss(fmt::format("has {} bytes, too few for a safetensors file", bytes.size()));
  std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
  const uint64_t remaining = bytes.size() - sizeof header_bytes;
  if (header_bytes > kMaxHeaderBytes) {
    return Status::data_loss(
        fmt::format("says its header has {} bytes, at most {} are accepted (is it a safetensors file?)", header_bytes, kMaxHeaderBytes));
  }
  if (header_bytes > remaining)
    return Status::data_loss(fmt::format("says its header has {} bytes, {} are left of the file", header_bytes, remaining));
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + sizeof header_bytes, header_bytes);
  if (!text.starts_with('{')) return Status::data_loss("header: does not start with \"{\"");
  MR_ASSIGN_OR_RETURN(SafetensorsHeader header, parse_safetensors_header(text));
  MR_RETURN_IF_ERROR(check_unique(header.entries));
  const auto data = bytes.subspan(sizeof header_bytes + header_bytes);
  MR_RETURN_IF_ERROR(check_extents(header.entries, static_cast<int64_t>(data.size())));
  return std::pair(std::move(header), data);
}

Status check_shard_name(std::string_view name) {
  const bool plain = !name.empty() && name[0] != '.' && name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
  if (plain && name.ends_with(".safetensors")) return Status::ok();
  return Status::data_loss(fmt::format("weight_map names the file {}; expected a plain name that ends in .safetensors", quoted_name(name)));
}

// weight_map turned around: shard name -> the tensors it should hold.
Result<std::map<std::string, std::vector<std::string>>> read_index(const std::string& path) {
  MR_ASSIGN_OR_RETURN(const std::string text, read_text_file(path, kMaxHeaderBytes));
  MR_ASSIGN_OR_RETURN(const json::value index, parse_json(text, {.max_depth = 8}));
  const json::value* weight_map = index.is_object() ? index.get_object().if_contains("weight_map") : nullptr;
  if (weight_map == nullptr || !weight_map->is_object()) return Status::data_loss("has no object \"weight_map\"");
  std::map<std::string, std::vector<std::string>> shards;
  for (const auto& [tensor, file] : weight_map->get_object()) {
    if (!file.is_string()) return Status::data_loss(fmt::format("weight_map of {} is not a string", quoted_name(tensor)));
    MR_RETURN_IF_ERROR(check_shard_name(file.get_string()));
    shards[std::string(file.get_string())].emplace_back(tensor);
    if (shards.size() > kMaxShards) return Status::data_loss(fmt::format("names more than {} files", kMaxShards));
  }
  if (shards.empty()) return Status::data_loss("weight_map is empty");
  return shards;
}

}  // namespace

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  MR_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::open(path));
  auto parsed = parse(mapped.bytes());
  if (!parsed.is_ok()) return parsed.status().with_context(path);
  auto& [header, data] = *parsed;
  SafetensorsFile file(std::move(mapped));
  file.metadata_ = std::move(header.metadata);
  file.tensors_.reserve(header.entries.size());
  for (auto& entry : header.entries) {
    const auto begin = static_cast<std::size_t>(entry.begin), end = static_cast<std::size_t>(entry.end);
    file.tensors_.push_back({std::move(entry.name), entry.dtype, std::move(entry.shape), data.subspan(begin, end - begin)});
  }
  return file;
}

Result<std::vector<SafetensorsFile>> open_safetensors(const std::string& directory) {
  const std::filesystem::path base(directory);
  std::vector<SafetensorsFile> files;
  std::error_code ignored;
  if (std::filesystem::exists(base / kSingleName, ignored)) {
    MR_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::open((base / kSingleName).string()));
    files.push_back(std::move(file));
    return files;
  }
  const std::string index_path = (base / kIndexName).string();
  auto shards = read_index(index_path);
  if (!shards.is_ok()) {
    const Status& status = shards.status();
    return status.message().starts_with(index_path) ? status : status.with_context(index_path);
  }
  for (const auto& [name, tensors] : *shards) {
    MR_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::open((base / name).string()));
    std::set<std::string_view> held;
    for (const auto& tensor : file.tensors()) held.insert(tensor.name);
    for (const auto& tensor : tensors) {
      if (!held.contains(tensor))
        return Status::data_loss(fmt::format("{}: lacks tensor {}, which {} places in it", file.path(), quoted_name(tensor), kIndexName));
    }
    files.push_back(std::move(file));
  }
  return files;
}

}  // namespace millrace
