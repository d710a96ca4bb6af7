#include "millrace/formats/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "millrace/formats/gguf_split_name.h"
#include "millrace/formats/quoted_name.h"

namespace millrace {
namespace {

constexpr uint64_t kMaxNameBytes = 64 << 10;
constexpr uint32_t kMaxDimensions = 4;
constexpr uint32_t kDefaultAlignment = 32;
constexpr uint64_t kMinEntryBytes = 8 + 4 + 1;       // key length, value type, a one-byte value
constexpr uint64_t kMinTensorBytes = 8 + 4 + 4 + 8;  // name length, dimension count, type, offset
constexpr int64_t kMaxSplitFiles = 1024;

// Bytes of one value of the type; 0 for strings and arrays.
uint64_t scalar_bytes(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool: return 1;
    case GgufType::kUint16:
    case GgufType::kInt16: return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32: return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64: return 8;
    case GgufType::kString:
    case GgufType::kArray: return 0;
  }
  return 0;
}

template <class T>
T load(std::span<const std::byte> bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

std::string_view as_text(std::span<const std::byte> bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

// What one file of a model says, checked. Views into the file.
struct Part {
  uint32_t version = 0;
  std::vector<GgufValue> metadata;
  std::vector<std::size_t> by_key;
  std::vector<SourceTensor> tensors;
};

// Reads one file front to back. Every read is checked against what is left of it.
class PartParser {
 public:
  explicit PartParser(std::span<const std::byte> bytes) : bytes_(bytes) {}

  Result<Part> parse() {
    uint64_t num_tensors = 0, num_entries = 0;
    MR_RETURN_IF_ERROR(parse_header(num_tensors, num_entries));
    part_.metadata.reserve(num_entries);
    for (uint64_t i = 0; i < num_entries; ++i) MR_RETURN_IF_ERROR(parse_entry(i));
    MR_RETURN_IF_ERROR(index_keys());
    if (remaining() / kMinTensorBytes < num_tensors) return too_many("tensors", num_tensors, kMinTensorBytes);
    part_.tensors.reserve(num_tensors);
    offsets_.reserve(num_tensors);
    for (uint64_t i = 0; i < num_tensors; ++i) MR_RETURN_IF_ERROR(parse_tensor(i));
    MR_RETURN_IF_ERROR(place_tensors());
    return std::move(part_);
  }

 private:
  uint64_t remaining() const { return bytes_.size() - position_; }

  Status truncated(std::string_view what) const {
    return Status::data_loss(fmt::format("the file ends within {} (at byte {} of {})", what, position_, bytes_.size()));
  }
  Status too_many(std::string_view things, uint64_t count, uint64_t bytes_each) const {
    return Status::data_loss(fmt::format("says it has {} {}, but the {} bytes left of the file hold at most {}", count, things, remaining(),
                                         remaining() / bytes_each));
  }

  template <class T>
  Status read(T& value, std::string_view what) {
    if (remaining() < sizeof(T)) return truncated(what);
    value = load<T>(bytes_, position_);
    position_ += sizeof(T);
    return Status::ok();
  }

  Status read_name(std::string_view& name, std::string_view what) {
    uint64_t length = 0;
    MR_RETURN_IF_ERROR(read(length, what));
    if (length > kMaxNameBytes)
      return Status::data_loss(fmt::format("{} is {} bytes long, at most {} are accepted", what, length, kMaxNameBytes));
    if (length == 0) return Status::data_loss(fmt::format("{} is empty", what));
    if (remaining() < length) return truncated(what);
    name = as_text(bytes_.subspan(position_, length));
    position_ += length;
    return Status::ok();
  }

  Status parse_header(uint64_t& num_tensors, uint64_t& num_entries) {
    if (bytes_.size() < 4 || std::memcmp(bytes_.data(), "GGUF", 4) != 0) {
      const std::string_view found = as_text(bytes_.first(std::min<std::size_t>(bytes_.size(), 4)));
      return Status::invalid_argument(fmt::format("is not a GGUF file: it starts with {}, not \"GGUF\"", quoted_name(found)));
    }
    position_ = 4;
    MR_RETURN_IF_ERROR(read(part_.version, "the version"));
    if ((part_.version & 0xffff) == 0 && part_.version != 0)
      return Status::unsupported("is a big-endian GGUF file; only little-endian is read");
    if (part_.version < 2 || part_.version > 3) {
      return Status::unsupported(fmt::format("has GGUF version {}; versions 2 and 3 are read", part_.version));
    }
    MR_RETURN_IF_ERROR(read(num_tensors, "the tensor count"));
    MR_RETURN_IF_ERROR(read(num_entries, "the metadata count"));
    if (remaining() / kMinEntryBytes < num_entries) return too_many("metadata entries", num_entries, kMinEntryBytes);
    if (remaining() / kMinTensorBytes < num_tensors) return too_many("tensors", num_tensors, kMinTensorBytes);
    return Status::ok();
  }

  Status read_type(GgufType& type, std::string_view key) {
    uint32_t id = 0;
    MR_RETURN_IF_ERROR(read(id, "a value type"));
    if (id > static_cast<uint32_t>(GgufType::kFloat64)) {
      return Status::data_loss(fmt::format("metadata {}: unknown value type {}", quoted_name(key), id));
    }
    type = static_cast<GgufType>(id);
    return Status::ok();
  }

  Status parse_entry(uint64_t index) {
    GgufValue value;
    MR_RETURN_IF_ERROR(read_name(value.key, fmt::format("the key of metadata entry {}", index)));
    MR_RETURN_IF_ERROR(read_type(value.type, value.key));
    uint64_t count = 1;
    if (value.type == GgufType::kArray) {
      value.is_array = true;
      MR_RETURN_IF_ERROR(read_type(value.type, value.key));
      if (value.type == GgufType::kArray)
        return Status::unsupported(fmt::format("metadata {}: an array of arrays", quoted_name(value.key)));
      MR_RETURN_IF_ERROR(read(count, "an array length"));
    }
    const std::size_t start = position_;
    if (value.type == GgufType::kString) {
      MR_RETURN_IF_ERROR(skip_strings(value.key, count));
    } else {
      const uint64_t each = scalar_bytes(value.type);
      if (remaining() / each < count) {
        return Status::data_loss(fmt::format("metadata {}: {} values of {} need more than the {} bytes left of the file",
                                             quoted_name(value.key), count, gguf_type_name(value.type), remaining()));
      }
      position_ += count * each;
    }
    value.count = static_cast<int64_t>(count);
    value.bytes = bytes_.subspan(start, position_ - start);
    if (value.type == GgufType::kBool && std::ranges::any_of(value.bytes, [](std::byte b) { return b > std::byte{1}; })) {
      return Status::data_loss(fmt::format("metadata {}: a bool that is neither 0 nor 1", quoted_name(value.key)));
    }
    part_.metadata.push_back(value);
    return Status::ok();
  }

  Status skip_strings(std::string_view key, uint64_t count) {
    if (remaining() / 8 < count) {
      return Status::data_loss(
          fmt::format("metadata {}: {} strings need more than the {} bytes left of the file", quoted_name(key), count, remaining()));
    }
    for (uint64_t i = 0; i < count; ++i) {
      uint64_t length = 0;
      MR_RETURN_IF_ERROR(read(length, "a string length"));
      if (remaining() < length) {
        return Status::data_loss(
            fmt::format("metadata {}: a string of {} bytes, but the file has {} left", quoted_name(key), length, remaining()));
      }
      position_ += length;
    }
    return Status::ok();
  }

  Status index_keys() {
    auto& order = part_.by_key;
    order.resize(part_.metadata.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    const auto key = [this](std::size_t i) { return part_.metadata[i].key; };
    std::ranges::sort(order, {}, key);
    const auto twin = std::ranges::adjacent_find(order, {}, key);
    if (twin != order.end()) return Status::data_loss(fmt::format("metadata {} occurs twice", quoted_name(key(*twin))));
    const auto alignment = std::ranges::lower_bound(order, std::string_view("general.alignment"), {}, key);
    if (alignment == order.end() || key(*alignment) != "general.alignment") return Status::ok();
    const GgufValue& value = part_.metadata[*alignment];
    if (value.is_array || value.type != GgufType::kUint32) {
      return Status::data_loss(fmt::format("metadata \"general.alignment\" is {}, expected uint32", gguf_type_name(value.type)));
    }
    alignment_ = load<uint32_t>(value.bytes, 0);
    if (alignment_ == 0 || (alignment_ & (alignment_ - 1)) != 0) {
      return Status::data_loss(fmt::format("metadata \"general.alignment\" is {}, expected a power of 2", alignment_));
    }
    return Status::ok();
  }

  Status parse_tensor(uint64_t index) {
    std::string_view name;
    MR_RETURN_IF_ERROR(read_name(name, fmt::format("the name of tensor {}", index)));
    uint32_t num_dimensions = 0;
    MR_RETURN_IF_ERROR(read(num_dimensions, "a dimension count"));
    if (num_dimensions > kMaxDimensions) {
      return Status::data_loss(
          fmt::format("tensor {} has {} dimensions, at most {} are accepted", quoted_name(name), num_dimensions, kMaxDimensions));
    }
    std::vector<int64_t> shape(num_dimensions);
    for (uint32_t i = 0; i < num_dimensions; ++i) {
      int64_t& size = shape[num_dimensions - 1 - i];  // the file has the innermost first
      MR_RETURN_IF_ERROR(read(size, "a dimension"));
      if (size < 1)
        return Status::data_loss(fmt::format("tensor {} has dimension {} = {}", quoted_name(name), i, static_cast<uint64_t>(size)));
    }
    uint32_t type_id = 0;
    MR_RETURN_IF_ERROR(read(type_id, "a tensor type"));
    const std::optional<DType> dtype = dtype_from_gguf_id(type_id);
    if (!dtype)
      return Status::unsupported(fmt::format("tensor {} has type id {}, which is unknown to this build", quoted_name(name), type_id));
    uint64_t offset = 0;
    MR_RETURN_IF_ERROR(read(offset, "a tensor offset"));

    const int64_t row_elements = shape.empty() ? 1 : shape.back();
    std::optional<int64_t> bytes = row_bytes(*dtype, row_elements);
    if (!bytes && row_elements % dtype_info(*dtype).block_elements != 0) {
      return Status::data_loss(fmt::format("tensor {}: rows of {} numbers are no whole blocks of {} ({} numbers each)", quoted_name(name),
                                           row_elements, dtype_name(*dtype), dtype_info(*dtype).block_elements));
    }
    // The elements are multiplied as well: a later product of the shape must not overflow either (CVE-2026-27940's class).
    int64_t elements = row_elements, total = bytes.value_or(0);
    bool overflow = !bytes;
    for (std::size_t i = 0; i + 1 < shape.size(); ++i) {
      overflow |= __builtin_mul_overflow(elements, shape[i], &elements);
      overflow |= __builtin_mul_overflow(total, shape[i], &total);
    }
    if (overflow) return Status::data_loss(fmt::format("tensor {}: the product of its dimensions overflows 63 bits", quoted_name(name)));
    if (offset % alignment_ != 0) {
      return Status::data_loss(
          fmt::format("tensor {} has offset {}, which is no multiple of the alignment {}", quoted_name(name), offset, alignment_));
    }
    part_.tensors.push_back({std::string(name), *dtype, std::move(shape), {}});
    offsets_.push_back({offset, static_cast<uint64_t>(total), part_.tensors.size() - 1});
    return Status::ok();
  }

  // Tensor data start at the next multiple of the alignment. Extents lie within the file and do not overlap.
  Status place_tensors() {
    if (part_.tensors.empty()) return Status::ok();
    const uint64_t start = (position_ + alignment_ - 1) / alignment_ * alignment_;
    const uint64_t available = start <= bytes_.size() ? bytes_.size() - start : 0;
    std::ranges::sort(offsets_, {}, &Extent::offset);
    uint64_t previous_end = 0;
    const SourceTensor* previous = nullptr;
    for (const Extent& extent : offsets_) {
      SourceTensor& tensor = part_.tensors[extent.tensor];
      if (extent.offset > available || extent.bytes > available - extent.offset) {
        return Status::data_loss(
            fmt::format("tensor {} needs bytes {} to {} after the header, but the file has {} there (is it truncated?)",
                        quoted_name(tensor.name), extent.offset, static_cast<unsigned __int128>(extent.offset) + extent.bytes, available));
      }
      if (extent.offset < previous_end) {
        return Status::data_loss(fmt::format("tensors {} and {} overlap", quoted_name(previous->name), quoted_name(tensor.name)));
      }
      tensor.data = bytes_.subspan(start + extent.offset, extent.bytes);
      previous_end = extent.offset + extent.bytes;
      previous = &tensor;
    }
    return Status::ok();
  }

  struct Extent {
    uint64_t offset, bytes;
    std::size_t tensor;
  };

  std::span<const std::byte> bytes_;
  std::size_t position_ = 0;
  uint64_t alignment_ = kDefaultAlignment;
  Part part_;
  std::vector<Extent> offsets_;
};

Status refuse_duplicate_names(std::span<const SourceTensor> tensors) {
  std::vector<std::string_view> names;
  names.reserve(tensors.size());
  for (const auto& tensor : tensors) names.push_back(tensor.name);
  std::ranges::sort(names);
  const auto twin = std::ranges::adjacent_find(names);
  if (twin != names.end()) return Status::data_loss(fmt::format("tensor {} occurs twice", quoted_name(*twin)));
  return Status::ok();
}

// The integer, whatever its width; absent when it is none or does not fit.
std::optional<int64_t> load_integer(GgufType type, std::span<const std::byte> bytes, std::size_t offset) {
  switch (type) {
    case GgufType::kUint8: return load<uint8_t>(bytes, offset);
    case GgufType::kInt8: return load<int8_t>(bytes, offset);
    case GgufType::kUint16: return load<uint16_t>(bytes, offset);
    case GgufType::kInt16: return load<int16_t>(bytes, offset);
    case GgufType::kUint32: return load<uint32_t>(bytes, offset);
    case GgufType::kInt32: return load<int32_t>(bytes, offset);
    case GgufType::kInt64: return load<int64_t>(bytes, offset);
    case GgufType::kUint64: {
      const auto value = load<uint64_t>(bytes, offset);
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default: return std::nullopt;
  }
}

std::optional<double> load_number(GgufType type, std::span<const std::byte> bytes, std::size_t offset) {
  if (type == GgufType::kFloat32) return load<float>(bytes, offset);
  if (type == GgufType::kFloat64) return load<double>(bytes, offset);
  if (type == GgufType::kUint64) return static_cast<double>(load<uint64_t>(bytes, offset));
  const auto integer = load_integer(type, bytes, offset);
  return integer ? std::optional<double>(static_cast<double>(*integer)) : std::nullopt;
}

// The files of the set that the file at `path` says it belongs to. The names come from the naming scheme, never from a file.
Result<std::vector<std::string>> split_paths(const std::string& path, int64_t num_files) {
  const auto name = parse_gguf_split_name(path);
  if (!name) {
    return Status::invalid_argument(
        fmt::format("is one of a split set of {} files, but is not named like one (name-00001-of-{:05}.gguf), so the others "
                    "cannot be found",
                    num_files, num_files));
  }
  if (name->count != num_files) {
    return Status::data_loss(fmt::format("is named as one of {} files, but its metadata says {}", name->count, num_files));
  }
  std::vector<std::string> paths;
  for (int64_t number = 1; number <= num_files; ++number) paths.push_back(gguf_split_path(name->prefix, number, num_files));
  return paths;
}

}  // namespace

std::string_view gguf_type_name(GgufType type) {
  constexpr std::string_view kNames[] = {"uint8", "int8",   "uint16", "int16",  "uint32", "int32",  "float32",
                                         "bool",  "string", "array",  "uint64", "int64",  "float64"};
  return kNames[static_cast<std::size_t>(type)];
}

Result<GgufFile> GgufFile::open(const std::string& path) {
  const auto parse = [](MappedFile mapped) -> Result<GgufFile> {
    Result<Part> part = PartParser(mapped.bytes()).parse();
    if (!part.is_ok()) return part.status().with_context(mapped.path());
    GgufFile file;
    file.version_ = part->version;
    file.metadata_ = std::move(part->metadata);
    file.by_key_ = std::move(part->by_key);
    file.tensors_ = std::move(part->tensors);
    file.files_.push_back(std::move(mapped));
    return file;
  };

  MR_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::open(path));
  MR_ASSIGN_OR_RETURN(GgufFile file, parse(std::move(mapped)));
  const int64_t num_files = file.integer("split.count").value_or(1);
  if (num_files <= 1) {
    MR_RETURN_IF_ERROR(refuse_duplicate_names(file.tensors_).with_context(path));
    return file;
  }
  if (num_files > kMaxSplitFiles) {
    return Status::data_loss(fmt::format("{}: says it is one of {} files, at most {} are accepted", path, num_files, kMaxSplitFiles));
  }
  auto paths = split_paths(path, num_files);
  if (!paths.is_ok()) return paths.status().with_context(path);

  GgufFile whole;
  for (int64_t number = 0; number < num_files; ++number) {
    const std::string& part_path = (*paths)[static_cast<std::size_t>(number)];
    Result<MappedFile> part = MappedFile::open(part_path);
    if (!part.is_ok()) return part.status().with_context(fmt::format("part {} of {} of the split model", number + 1, num_files));
    MR_ASSIGN_OR_RETURN(GgufFile alone, parse(std::move(part).value()));
    const auto says_number = alone.integer("split.no"), says_count = alone.integer("split.count");
    if (says_number != number || says_count != num_files) {
      return Status::data_loss(
          fmt::format("{}: expected part {} of {} (split.no {}, split.count {}), its metadata says split.no {}, split.count {}", part_path,
                      number + 1, num_files, number, num_files, says_number.value_or(-1), says_count.value_or(-1)));
    }
    if (number == 0) {
      whole = std::move(alone);
    } else {
      std::ranges::move(alone.tensors_, std::back_inserter(whole.tensors_));
      std::ranges::move(alone.files_, std::back_inserter(whole.files_));
    }
  }
  const auto total = whole.integer("split.tensors.count");
  if (total && *total != static_cast<int64_t>(whole.tensors_.size())) {
    return Status::data_loss(
        fmt::format("{}: the split set says it has {} tensors, its files hold {}", path, *total, whole.tensors_.size()));
  }
  MR_RETURN_IF_ERROR(refuse_duplicate_names(whole.tensors_).with_context(path));
  return whole;
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto found = std::ranges::lower_bound(by_key_, key, {}, [this](std::size_t i) { return metadata_[i].key; });
  if (found == by_key_.end() || metadata_[*found].key != key) return nullptr;
  return &metadata_[*found];
}

std::optional<int64_t> GgufFile::integer(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr || value->is_array) return std::nullopt;
  return load_integer(value->type, value->bytes, 0);
}

std::optional<double> GgufFile::number(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr || value->is_array) return std::nullopt;
  return load_number(value->type, value->bytes, 0);
}

std::optional<bool> GgufFile::boolean(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr || value->is_array || value->type != GgufType::kBool) return std::nullopt;
  return value->bytes[0] != std::byte{0};
}

std::optional<std::string_view> GgufFile::string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr || value->is_array || value->type != GgufType::kString) return std::nullopt;
  return as_text(value->bytes.subspan(8));
}

std::optional<std::vector<std::string_view>> GgufFile::strings(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr || !value->is_array || value->type != GgufType::kString) return std::nullopt;
  std::vector<std::string_view> strings;
  strings.reserve(static_cast<std::size_t>(value->count));
  std::size_t position = 0;  // the lengths were checked by open()
  for (int64_t i = 0; i < value->count; ++i) {
    const auto length = load<uint64_t>(value->bytes, position);
    strings.push_back(as_text(value->bytes.subspan(position + 8, length)));
    position += 8 + length;
  }
  return strings;
}

std::optional<std::vector<int64_t>> GgufFile::integers(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr || !value->is_array || value->type == GgufType::kString) return std::nullopt;
  std::vector<int64_t> integers;
  integers.reserve(static_cast<std::size_t>(value->count));
  const std::size_t each = scalar_bytes(value->type);
  for (std::size_t offset = 0; offset < value->bytes.size(); offset += each) {
    const auto integer = load_integer(value->type, value->bytes, offset);
    if (!integer) return std::nullopt;
    integers.push_back(*integer);
  }
  return integers;
}

std::optional<std::vector<float>> GgufFile::floats(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr || !value->is_array || value->type == GgufType::kString) return std::nullopt;
  std::vector<float> floats;
  floats.reserve(static_cast<std::size_t>(value->count));
  const std::size_t each = scalar_bytes(value->type);
  for (std::size_t offset = 0; offset < value->bytes.size(); offset += each) {
    const auto number = load_number(value->type, value->bytes, offset);
    if (!number) return std::nullopt;
    floats.push_back(static_cast<float>(*number));
  }
  return floats;
}

}  // namespace millrace
