#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace millrace {

// Of bytes that this program wrote and reads again: packed weights, KV blocks. Every step is one to one, so that a changed word always
// changes the sum. About as fast as memory is read. Finds accidents; it is no defence against somebody who may write the user's files.
uint64_t checksum(std::span<const std::byte> bytes);

}  // namespace millrace
