// Any bytes as a GGUF: an error, or a file of which every view can be read.
#include <numeric>

#include "millrace/formats/gguf.h"
#include "millrace/formats/gguf_config.h"
#include "tests/fuzz/memory_file.h"

namespace {
volatile int64_t sink;  // so that the reads below are not optimized away
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  const MemoryFile input(data, size);
  const auto file = millrace::GgufFile::open(input.path());
  if (!file.is_ok()) return 0;
  int64_t sum = 0;
  for (const auto& entry : file->metadata()) {
    sum += file->integer(entry.key).value_or(0) & 1;
    sum += file->number(entry.key).has_value() + file->boolean(entry.key).has_value();
    if (const auto text = file->string(entry.key)) sum = std::accumulate(text->begin(), text->end(), sum);
    if (const auto texts = file->strings(entry.key)) {
      for (const auto text : *texts) sum = std::accumulate(text.begin(), text.end(), sum);
    }
    if (const auto integers = file->integers(entry.key)) sum += static_cast<int64_t>(integers->size());
    if (const auto floats = file->floats(entry.key)) sum += static_cast<int64_t>(floats->size());
  }
  for (const auto& tensor : file->tensors()) {
    for (const std::byte byte : tensor.data) sum += static_cast<int64_t>(byte);
  }
  const auto config = millrace::gguf_config(*file);
  if (config.is_ok()) sum += static_cast<int64_t>(millrace::json::serialize(*config).size());
  sink = sum;
  return 0;
}
