#pragma once

#include <string>

#include "millrace/engine/speculation_options.h"

namespace millrace::cli {

// --speculative-config: "off", a method ("ngram", "suffix"), or an object with vLLM's keys. Errors name the option and what was expected.
Result<SpeculationOptions> parse_speculation(const std::string& text);

}  // namespace millrace::cli
