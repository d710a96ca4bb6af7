#pragma once

#include <cstddef>
#include <fstream>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "millrace/base/mapped_file.h"
#include "millrace/quality/divergence.h"
#include "millrace/quality/text_windows.h"

// Predictions in a file, so that a reference is computed once. Two formats, told apart by their first eight bytes; docs/quality.md has
// both byte by byte. All integers are little-endian.
//   kF32       ours: f32 logits as computed, for any windows
//   kLogProbs  what llama.cpp's perplexity tool writes with --kl-divergence-base: log-probabilities in 16 bits, only for windows that
//              score their second half. Both programs read each other's files.
namespace millrace {

enum class LogitsFormat { kF32, kLogProbs };

Result<LogitsFormat> parse_logits_format(std::string_view name);  // "f32", "llama.cpp"

// Whether the file begins like one of the two. A file that cannot be read is not.
bool is_logits_file(const std::string& path);

// Reads one. Its bytes are untrusted.
class LogitsFile {
 public:
  // DataLoss: the file's size is not what its header says, or a window or token is impossible.
  static Result<LogitsFile> open(const std::string& path);

  // llama.cpp's format does not say whether BOS stands at the beginning of each window: who knows the model must.
  LogitsFormat format() const { return format_; }
  const TextWindows& text() const { return text_; }
  int64_t vocab_size() const { return vocab_size_; }
  // Row `index` of all scored rows, in `scratch` [vocab_size] where the file has it in another form. Thread-safe. DataLoss: not finite.
  Result<ReferenceRow> row(int64_t index, std::span<float> scratch) const;

 private:
  explicit LogitsFile(MappedFile file) : file_(std::move(file)) {}
  Status parse();

  MappedFile file_;
  LogitsFormat format_ = LogitsFormat::kF32;
  TextWindows text_;
  int64_t vocab_size_ = 0, num_rows_ = 0, row_bytes_ = 0;
  std::size_t rows_begin_ = 0;  // offset of the first row
};

// Writes one, row by row in the windows' order.
class LogitsWriter {
 public:
  // Unsupported: windows that the format cannot describe. The windows are written at once, so they need not outlive this call.
  static Result<LogitsWriter> create(const std::string& path, LogitsFormat format, const TextWindows& text, int64_t vocab_size);

  int64_t row_bytes() const { return row_bytes_; }
  // What write() takes for these logits: row_bytes() bytes. Thread-safe.
  void encode(std::span<const float> logits, std::span<std::byte> row) const;
  Status write(std::span<const std::byte> rows);
  Status finish();

 private:
  LogitsWriter() = default;
  Status written() const;

  std::string path_;
  std::ofstream out_;
  LogitsFormat format_ = LogitsFormat::kF32;
  int64_t row_bytes_ = 0;
};

}  // namespace millrace
