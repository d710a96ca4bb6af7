#include "millrace/base/process_memory.h"

#include <malloc.h>

#include <charconv>
#include <fstream>
#include <string>
#include <string_view>

namespace millrace {
namespace {

// "Rss:               132024 kB"
void add_line(std::string_view line, MemoryUse& use) {
  const std::size_t colon = line.find(':');
  if (colon == std::string_view::npos) return;
  const std::string_view key = line.substr(0, colon);
  int64_t* to = key == "Rss"                                                                  ? &use.resident_bytes
                : key == "Anonymous"                                                          ? &use.anonymous_bytes
                : key == "AnonHugePages" || key == "FilePmdMapped" || key == "ShmemPmdMapped" ? &use.huge_bytes
                                                                                              : nullptr;
  if (to == nullptr) return;
  const std::size_t digits = line.find_first_not_of(" \t", colon + 1);
  int64_t kib = 0;
  if (digits != std::string_view::npos) std::from_chars(line.data() + digits, line.data() + line.size(), kib);
  *to += kib * 1024;
}

}  // namespace

MemoryUse process_memory() {
  std::ifstream file("/proc/self/smaps_rollup");
  MemoryUse use;
  for (std::string line; std::getline(file, line);) add_line(line, use);
  return use;
}

MemoryUse mapping_memory(std::span<const std::byte> range) {
  const auto begin = reinterpret_cast<uintptr_t>(range.data()), end = begin + range.size();
  std::ifstream file("/proc/self/smaps");
  MemoryUse use;
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    // A mapping starts with its addresses: "7f4bdc923000-7f4be1099000 r--p ..."; its fields follow, "Rss:   ...".
    uintptr_t from = 0, to = 0;
    const char* last = line.data() + line.size();
    const auto first = std::from_chars(line.data(), last, from, 16);
    if (first.ec == std::errc() && first.ptr != last && *first.ptr == '-') {
      std::from_chars(first.ptr + 1, last, to, 16);
      inside = from < end && to > begin;
    } else if (inside) {
      add_line(line, use);
    }
  }
  return use;
}

int64_t allocated_bytes() {
  const struct mallinfo2 info = ::mallinfo2();
  return static_cast<int64_t>(info.uordblks + info.hblkhd);
}

void release_freed_memory() { ::malloc_trim(0); }

}  // namespace millrace
