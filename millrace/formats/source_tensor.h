#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "millrace/tensor/dtype.h"

namespace millrace {

// One tensor of a published model, where it lies in the mapped file. The extent is checked; the numbers in it are not.
struct SourceTensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;       // row-major, outermost first as Hugging Face writes it (GGUF's own order is the reverse)
  std::span<const std::byte> data;  // exactly the bytes that shape and dtype need; valid while its file or Checkpoint lives
};

}  // namespace millrace
