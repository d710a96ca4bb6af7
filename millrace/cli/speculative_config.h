#pragma once

#include <string>
#include <string_view>

#include "millrace/engine/speculation_options.h"

namespace millrace::cli {

struct SpeculativeConfig {
  SpeculationOptions options;  // of a draft model without its executor
  std::string draft_model;     // kDraftModel: directory, GGUF file or org/name
};

// --speculative-config: "off", a method ("ngram", "suffix"), or an object with vLLM's keys. Errors name the option and what was expected.
Result<SpeculativeConfig> parse_speculation(const std::string& text);

}  // namespace millrace::cli
