#include "millrace/model/family.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>

#include "millrace/model/family_builtin.h"
#include "millrace/model/family_schema.h"

namespace millrace {

namespace {

constexpr std::uintmax_t kFamilyBytesMax = 1 << 20;

std::vector<std::string> texts(const json::object& object, std::string_view name) {
  std::vector<std::string> result;
  const json::value* value = object.if_contains(name);
  if (value == nullptr) return result;
  if (value->is_string()) return {std::string(value->get_string())};
  for (const json::value& element : value->get_array()) result.emplace_back(std::string_view(element.get_string()));
  return result;
}

Result<Family> read_family(const std::filesystem::path& path) {
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return Status::not_found(fmt::format("{}: {}", path.string(), error.message()));
  if (size > kFamilyBytesMax)
    return Status::invalid_argument(fmt::format("{}: {} bytes are too many for a family file", path.string(), size));
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) return Status::not_found(fmt::format("{}: cannot be read", path.string()));
  return Family::parse(text, path.filename().string());
}

// What the checkpoint says it is: the texts of "architectures", or GGUF's "general.architecture".
Result<std::vector<std::string>> architectures_of(const Checkpoint& checkpoint) {
  const std::string_view key = checkpoint.kind() == Checkpoint::Kind::kGguf ? "general.architecture" : "architectures";
  const json::value* value = checkpoint.config().if_contains(key);
  std::vector<std::string> names;
  if (value != nullptr && value->is_string()) names.emplace_back(std::string_view(value->get_string()));
  if (value != nullptr && value->is_array()) {
    for (const json::value& element : value->get_array()) {
      if (element.is_string()) names.emplace_back(std::string_view(element.get_string()));
    }
  }
  if (names.empty()) return Status::invalid_argument(fmt::format("{}: \"{}\" does not name an architecture", checkpoint.path(), key));
  return names;
}

// Letters to insert, delete or change to make one of the other (Levenshtein's distance).
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t changed = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({changed, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

// The three of `known` that are written most like `name`, the nearest first.
std::vector<std::string> nearest(std::string_view name, std::vector<std::string> known) {
  constexpr std::size_t kNameBytesMax = 100, kNearest = 3;
  name = name.substr(0, kNameBytesMax);
  std::stable_sort(known.begin(), known.end(),
                   [&](const std::string& a, const std::string& b) { return distance(name, a) < distance(name, b); });
  known.resize(std::min(known.size(), kNearest));
  return known;
}

}  // namespace

Result<Family> Family::parse(std::string_view json_text, std::string_view file_name) {
  const Result<json::value> value = parse_json(json_text);
  if (!value.is_ok()) return value.status().with_context(file_name);
  if (!value->is_object()) return Status::invalid_argument(fmt::format("{}: a family is a JSON object", file_name));
  Family family;
  family.file_name_ = std::string(file_name);
  family.description_ = value->get_object();
  if (const Status status = check_family_words(family.description_); !status.is_ok()) return status.with_context(file_name);
  family.name_ = texts(family.description_, "family").front();
  family.architectures_ = texts(family.description_, "architectures");
  family.gguf_architectures_ = texts(family.description_, "gguf_architecture");
  return family;
}

const std::vector<Family>& builtin_families() {
  static const std::vector<Family> families = [] {
    std::vector<Family> result;
    for (const BuiltinFamily& builtin : builtin_family_texts()) {
      Result<Family> family = Family::parse(builtin.text, builtin.file_name);
      MR_CHECK(family.is_ok(), family.status().message());
      result.push_back(std::move(family).value());
    }
    return result;
  }();
  return families;
}

Result<Family> choose_family(const Checkpoint& checkpoint, const std::optional<std::string>& family_file) {
  if (family_file) return read_family(*family_file);
  std::error_code error;
  const std::filesystem::path path(checkpoint.path());
  const std::filesystem::path beside = (std::filesystem::is_directory(path, error) ? path : path.parent_path()) / "millrace_family.json";
  if (std::filesystem::exists(beside, error)) return read_family(beside);

  const bool gguf = checkpoint.kind() == Checkpoint::Kind::kGguf;
  MR_ASSIGN_OR_RETURN(const std::vector<std::string> found, architectures_of(checkpoint));
  std::vector<std::string> known;
  for (const Family& family : builtin_families()) {
    for (const std::string& name : gguf ? family.gguf_architectures() : family.architectures()) {
      if (std::find(found.begin(), found.end(), name) != found.end()) return family;
      known.push_back(name);
    }
  }
  return Status::unsupported(fmt::format(
      "{}: architecture \"{}\" is not known; of those in docs/models.md the nearest names are {} (docs/add-a-model.md says how to add one)",
      checkpoint.path(), fmt::join(found, "\", \""), fmt::join(nearest(found.front(), std::move(known)), ", ")));
}

}  // namespace millrace
