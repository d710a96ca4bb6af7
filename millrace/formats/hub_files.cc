#include "millrace/formats/hub_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <map>

#include "millrace/formats/gguf_split_name.h"
#include "millrace/formats/quoted_name.h"

namespace millrace {
namespace {

bool is_plain(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-'; }

// A GGUF to choose: its file names in order.
using GgufSet = std::vector<std::string>;

// The GGUF models among the files, by the name a user would give. Incomplete split sets are left out.
std::map<std::string, GgufSet> gguf_sets(std::span<const std::string> files) {
  std::map<std::string, GgufSet> sets;
  for (const auto& file : files) {
    const std::string_view base = std::string_view(file).substr(file.rfind('/') + 1);
    if (!base.ends_with(".gguf") || base.starts_with("mmproj")) continue;
    const auto split = parse_gguf_split_name(file);
    if (!split) {
      sets[file] = {file};
    } else if (split->number == 1) {
      GgufSet set;
      for (int64_t number = 1; number <= split->count; ++number) set.push_back(gguf_split_path(split->prefix, number, split->count));
      if (std::ranges::all_of(set, [&](const std::string& part) { return std::ranges::find(files, part) != files.end(); }))
        sets[file] = set;
    }
  }
  return sets;
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return result;
}

Result<GgufSet> choose_gguf(std::span<const std::string> files, std::string_view wanted) {
  const auto sets = gguf_sets(files);
  std::vector<std::string> names;
  for (const auto& [name, set] : sets) names.push_back(name);
  if (sets.empty()) return Status::not_found("has neither model.safetensors (or its index) nor a GGUF file");
  if (const auto exact = sets.find(std::string(wanted)); exact != sets.end()) return exact->second;
  if (sets.size() == 1 && wanted.empty()) return sets.begin()->second;
  // The usual compromise of size and quality is taken when the user named none.
  const std::string part = lower(wanted.empty() ? "Q4_K_M" : wanted);
  std::vector<const GgufSet*> matching;
  for (const auto& [name, set] : sets) {
    if (lower(name).find(part) != std::string::npos) matching.push_back(&set);
  }
  if (matching.size() == 1) return *matching[0];
  const std::string why = wanted.empty() ? std::string("several GGUF models")
                                         : fmt::format("{} GGUF models named like {}", matching.size(), quoted_name(wanted));
  return Status::invalid_argument(fmt::format("has {}; choose one with --gguf-file: {}", why, fmt::join(names, ", ")));
}

}  // namespace

Result<HubModelName> parse_hub_model_name(std::string_view model) {
  const auto wrong = [model](std::string_view why) {
    return Status::not_found(fmt::format(
        "{}: no such file or directory, and not a hub model of the form org/name or org/name@revision ({})", quoted_name(model), why));
  };
  HubModelName name;
  if (const auto at = model.find('@'); at != std::string_view::npos) {
    name.revision = model.substr(at + 1);
    model = model.substr(0, at);
  }
  name.repository = model;
  const auto slash = model.find('/');
  if (slash == std::string_view::npos || model.find('/', slash + 1) != std::string_view::npos) return wrong("it needs exactly one \"/\"");
  for (const std::string_view part : {model.substr(0, slash), model.substr(slash + 1)}) {
    const bool plain = !part.empty() && part.size() <= 96 && std::ranges::all_of(part, is_plain);
    if (!plain || part[0] == '.' || part[0] == '-' || part.find("..") != std::string_view::npos ||
        part.find("--") != std::string_view::npos) {
      return wrong("letters, digits, \".\", \"_\" and single \"-\" are allowed");
    }
  }
  if (!is_safe_hub_path(name.revision)) return wrong("the revision is not a plain name");
  return name;
}

bool is_safe_hub_path(std::string_view path) {
  if (path.empty() || path.size() > 512) return false;
  while (true) {
    const std::string_view part = path.substr(0, path.find('/'));
    const auto allowed = [](char c) { return static_cast<unsigned char>(c) >= 0x20 && c != 0x7f && c != '\\'; };
    if (part.empty() || part == "." || part == ".." || part.size() > 255 || !std::ranges::all_of(part, allowed)) return false;
    if (part.size() == path.size()) return true;
    path.remove_prefix(part.size() + 1);
  }
}

Result<HubSelection> select_hub_files(std::span<const std::string> files, std::string_view wanted_gguf) {
  const auto has = [files](std::string_view name) { return std::ranges::find(files, name) != files.end(); };
  const bool single = has("model.safetensors");
  HubSelection selection;
  if (wanted_gguf.empty() && (single || has("model.safetensors.index.json"))) {
    for (const auto& file : files) {
      if (file.find('/') != std::string::npos) continue;
      const bool text = file.ends_with(".json") || file.ends_with(".jinja");
      // "consolidated" files hold the same weights again under other names.
      const bool weights = single ? file == "model.safetensors" : file.ends_with(".safetensors") && !file.starts_with("consolidated");
      if (text || weights) selection.files.push_back(file);
    }
    return selection;
  }
  MR_ASSIGN_OR_RETURN(selection.files, choose_gguf(files, wanted_gguf));
  selection.gguf = selection.files[0];
  return selection;
}

}  // namespace millrace
