#pragma once

#include <string>
#include <vector>

#include "millrace/base/status.h"

namespace millrace::cli {

// The texts of a file for an encoder: a text a line; of .jsonl a JSON text a line, or an object with "text". At most 1 GiB.
// Errors: kInvalidArgument (names the file and the line), and those of reading.
Result<std::vector<std::string>> read_texts(const std::string& path);

}  // namespace millrace::cli
