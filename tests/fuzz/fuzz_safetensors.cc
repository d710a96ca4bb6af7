// Any bytes as a safetensors file: an error, or tensors that cover the data exactly.
#include "millrace/base/check.h"
#include "millrace/formats/safetensors.h"
#include "tests/fuzz/memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  const MemoryFile input(data, size);
  const auto file = millrace::SafetensorsFile::open(input.path());
  if (!file.is_ok()) return 0;
  const std::byte* next = nullptr;
  int64_t sum = 0;
  for (const auto& tensor : file->tensors()) {
    MR_CHECK(next == nullptr || tensor.data.data() == next, "a hole");
    next = tensor.data.data() + tensor.data.size();
    for (const std::byte byte : tensor.data) sum += static_cast<int64_t>(byte);
  }
  const auto bytes = file->file().bytes();
  MR_CHECK(next == nullptr || next == bytes.data() + bytes.size(), "bytes at the end");
  MR_CHECK(sum >= 0, "bytes are not negative");
  return 0;
}
