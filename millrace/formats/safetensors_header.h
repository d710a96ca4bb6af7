#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/tensor/dtype.h"

namespace millrace {

// What a safetensors header says of one tensor: its bytes are [begin, end) of the data behind the header.
struct SafetensorsEntry {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  int64_t begin = 0;
  int64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // in the header's order; names may still occur twice
  std::vector<std::pair<std::string, std::string>> metadata;
};

// Parses the JSON text. It is read as a stream of events into the above, so a header costs memory in proportion to what it
// describes, and a name that occurs twice is seen (a JSON object would keep the last one silently).
Result<SafetensorsHeader> parse_safetensors_header(std::string_view text);

}  // namespace millrace
