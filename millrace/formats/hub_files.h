#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "millrace/base/status.h"

namespace millrace {

// "org/name@revision" taken apart, and checked to be usable in URLs and folder names.
struct HubModelName {
  std::string repository;  // "org/name"
  std::string revision = "main";
};
Result<HubModelName> parse_hub_model_name(std::string_view model);

// Whether a file name that a server sent stays below the folder it is joined to: relative, plain characters, no "." or ".." part.
bool is_safe_hub_path(std::string_view path);

struct HubSelection {
  std::vector<std::string> files;  // to download
  std::string gguf;                // the GGUF to open, or the first of its split set; empty: open the folder
};

// Chooses what a checkpoint needs out of all files of a repository: top-level *.json, *.jinja and safetensors, or one GGUF (split set).
// `wanted_gguf` is HubOptions::gguf_file. Errors list what there is to choose from.
Result<HubSelection> select_hub_files(std::span<const std::string> files, std::string_view wanted_gguf);

}  // namespace millrace
