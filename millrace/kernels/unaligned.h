#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "millrace/tensor/half.h"

// Numbers in the bytes of stored blocks and of panels, at any alignment. Not for files compiled for one instruction set (panel_layout.h).
namespace millrace::unaligned {

template <class T>
T load(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}
template <class T>
void store(std::byte* bytes, T value) {
  std::memcpy(bytes, &value, sizeof value);
}
inline float load_f16(const std::byte* bytes) { return f16_to_f32(load<uint16_t>(bytes)); }

}  // namespace millrace::unaligned
