#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace millrace {

// What of memory is in use, as the kernel's smaps counts it. Zero where it cannot be read.
struct MemoryUse {
  int64_t resident_bytes = 0;   // pages that are mapped and in memory
  int64_t anonymous_bytes = 0;  // of those: what was allocated or written; the rest are pages of files
  int64_t huge_bytes = 0;       // of those: mapped in huge pages
};

MemoryUse process_memory();
// Of the mappings that lie in `range`.
MemoryUse mapping_memory(std::span<const std::byte> range);

// What is allocated from the heap now.
int64_t allocated_bytes();
// Gives memory that was freed back to the system, so that what is resident is what is in use.
void release_freed_memory();

}  // namespace millrace
