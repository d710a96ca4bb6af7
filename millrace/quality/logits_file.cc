#include "millrace/quality/logits_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "millrace/sampling/softmax.h"

namespace millrace {
namespace {

constexpr std::size_t kMagicBytes = 8;
constexpr char kF32Magic[kMagicBytes + 1] = "MRLOGIT1", kLogProbsMagic[kMagicBytes + 1] = "_logits_";

// A row of log-probabilities: scale and lowest as f32, then a code of 16 bits for each token, padded to an even number of codes.
constexpr int64_t kScaleBytes = 2 * sizeof(float);
constexpr float kLogProbRange = 16.0f;  // below the largest; what is further down is clamped
constexpr float kCodeMax = 65535.0f;

int64_t row_bytes_of(LogitsFormat format, int64_t vocab_size) {
  return format == LogitsFormat::kF32 ? vocab_size * static_cast<int64_t>(sizeof(float)) : kScaleBytes + (vocab_size + 1) / 2 * 4;
}

// Takes fixed-size values from the front of untrusted bytes.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <class T, std::size_t kExtent>
  bool take(std::span<T, kExtent> out) {
    if (bytes_.size() - at_ < out.size_bytes()) return false;
    std::memcpy(out.data(), bytes_.data() + at_, out.size_bytes());
    at_ += out.size_bytes();
    return true;
  }
  std::size_t at() const { return at_; }
  std::size_t left() const { return bytes_.size() - at_; }

 private:
  std::span<const std::byte> bytes_;
  std::size_t at_ = 0;
};

template <class T>
void put(std::ofstream& out, std::span<const T> values) {
  out.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size_bytes()));
}

}  // namespace

Result<LogitsFormat> parse_logits_format(std::string_view name) {
  if (name == "f32") return LogitsFormat::kF32;
  if (name == "llama.cpp") return LogitsFormat::kLogProbs;
  return Status::invalid_argument(fmt::format("unknown logits format \"{}\"; expected f32 or llama.cpp", name));
}

bool is_logits_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  char magic[kMagicBytes];
  return file.read(magic, kMagicBytes) &&
         (std::memcmp(magic, kF32Magic, kMagicBytes) == 0 || std::memcmp(magic, kLogProbsMagic, kMagicBytes) == 0);
}

Result<LogitsFile> LogitsFile::open(const std::string& path) {
  MR_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::open(path));
  LogitsFile file(std::move(mapped));
  if (const Status status = file.parse(); !status.is_ok()) return status.with_context(path);
  return file;
}

Status LogitsFile::parse() {
  ByteReader reader(file_.bytes());
  const auto truncated = [&](std::string_view what) {
    return Status::data_loss(fmt::format("is truncated: it ends in {}, after {} bytes", what, file_.bytes().size()));
  };
  char magic[kMagicBytes];
  if (!reader.take(std::span(magic))) return truncated("the first eight bytes");
  if (std::memcmp(magic, kF32Magic, kMagicBytes) == 0) {
    format_ = LogitsFormat::kF32;
  } else if (std::memcmp(magic, kLogProbsMagic, kMagicBytes) == 0) {
    format_ = LogitsFormat::kLogProbs;
  } else {
    return Status::data_loss("is no file of logits: it begins with neither MRLOGIT1 nor _logits_");
  }

  // Ours: vocab_size, tokens, windows, bos or -1. llama.cpp's: context, vocab_size, windows.
  int32_t header[4] = {};
  const bool ours = format_ == LogitsFormat::kF32;
  if (!reader.take(std::span(header).first(ours ? 4 : 3))) return truncated("its header");
  const int64_t context = ours ? 0 : header[0], num_windows = header[2];
  vocab_size_ = ours ? header[0] : header[1];
  if (vocab_size_ < 1) return Status::data_loss(fmt::format("claims a vocabulary of {} tokens", vocab_size_));
  if (num_windows < 1) return Status::data_loss(fmt::format("claims {} windows", num_windows));
  if (!ours && context < 4) return Status::data_loss(fmt::format("claims windows of {} tokens", context));
  const int64_t num_tokens = ours ? header[1] : context * num_windows;
  if (num_tokens < 2) return Status::data_loss(fmt::format("claims a text of {} tokens", num_tokens));

  // Nothing is allocated for what the file cannot hold.
  if (num_tokens > static_cast<int64_t>(reader.left() / sizeof(int32_t)))
    return truncated(fmt::format("the {} tokens that its header claims", num_tokens));
  text_.tokens.resize(static_cast<std::size_t>(num_tokens));
  reader.take(std::span(text_.tokens));
  const auto outside = [&](int32_t id) { return id < 0 || id >= vocab_size_; };
  const auto bad = std::find_if(text_.tokens.begin(), text_.tokens.end(), outside);
  if (bad != text_.tokens.end())
    return Status::data_loss(fmt::format("token {} is {}, outside its vocabulary [0, {})", bad - text_.tokens.begin(), *bad, vocab_size_));
  if (ours) {
    if (header[3] != -1) text_.bos = header[3];
    if (text_.bos && outside(*text_.bos))
      return Status::data_loss(fmt::format("its BOS token is {}, outside its vocabulary [0, {})", *text_.bos, vocab_size_));
    if (num_windows > static_cast<int64_t>(reader.left() / (3 * sizeof(int32_t))))
      return truncated(fmt::format("the {} windows that its header claims", num_windows));
  }
  for (int64_t w = 0; w < num_windows; ++w) {
    TextWindows::Window window{w * context, context, context / 2};
    if (ours) {
      int32_t fields[3];
      reader.take(std::span(fields));
      window = {fields[0], fields[1], fields[2]};
      if (window.begin < 0 || window.count < 2 || window.begin > num_tokens - window.count || window.first_row < 0 ||
          window.num_scored() < 1) {
        return Status::data_loss(fmt::format("window {} has {} tokens from {} on and is scored from row {}, of a text of {}", w,
                                             window.count, window.begin, window.first_row, num_tokens));
      }
    }
    text_.windows.push_back(window);
  }

  rows_begin_ = reader.at();
  row_bytes_ = row_bytes_of(format_, vocab_size_);
  // At most 2^31 windows of 2^31 rows of 2^33 bytes: compared by division, which cannot overflow.
  num_rows_ = text_.num_scored();
  const auto left = static_cast<int64_t>(reader.left());
  if (left / row_bytes_ < num_rows_) return truncated(fmt::format("row {} of {}", left / row_bytes_, num_rows_));
  if (left != num_rows_ * row_bytes_)
    return Status::data_loss(fmt::format("has {} bytes after its {} rows", left - num_rows_ * row_bytes_, num_rows_));
  return Status::ok();
}

Result<ReferenceRow> LogitsFile::row(int64_t index, std::span<float> scratch) const {
  MR_CHECK(index >= 0 && index < num_rows_ && static_cast<int64_t>(scratch.size()) == vocab_size_, "a row of the file");
  const std::byte* bytes = file_.bytes().data() + rows_begin_ + static_cast<std::size_t>(index * row_bytes_);
  if (format_ == LogitsFormat::kF32) {
    std::memcpy(scratch.data(), bytes, scratch.size_bytes());
    if (!all_finite(scratch)) return Status::data_loss(fmt::format("{}: row {} holds logits that are not finite", file_.path(), index));
    return ReferenceRow{scratch, false};
  }
  float scale, lowest;
  std::memcpy(&scale, bytes, sizeof scale);
  std::memcpy(&lowest, bytes + sizeof scale, sizeof lowest);
  // Log-probabilities lie between -(16 + log of the vocabulary's size) and 0; a little is left for rounding.
  if (!(scale >= 0 && lowest <= 0.01f && lowest >= -kLogProbRange - 40.0f && lowest + scale * kCodeMax <= 0.01f)) {
    return Status::data_loss(
        fmt::format("{}: row {} has a scale of {} from {} on: no log-probabilities", file_.path(), index, scale, lowest));
  }
  bytes += kScaleBytes;
  for (std::size_t i = 0; i < scratch.size(); ++i) {
    uint16_t code;
    std::memcpy(&code, bytes + i * sizeof code, sizeof code);
    scratch[i] = scale * static_cast<float>(code) + lowest;
  }
  return ReferenceRow{scratch, true};
}

Result<LogitsWriter> LogitsWriter::create(const std::string& path, LogitsFormat format, const TextWindows& text, int64_t vocab_size) {
  MR_CHECK(!text.windows.empty(), "there are windows");
  const int64_t context = text.windows[0].count;
  if (format == LogitsFormat::kLogProbs) {
    for (std::size_t w = 0; w < text.windows.size(); ++w) {
      const auto& window = text.windows[w];
      if (window.begin != static_cast<int64_t>(w) * context || window.count != context || window.first_row != context / 2) {
        return Status::unsupported(
            "llama.cpp's format has only windows side by side, of which the second half is scored: not with a stride");
      }
    }
  }
  LogitsWriter writer;
  writer.path_ = path;
  writer.format_ = format;
  writer.row_bytes_ = row_bytes_of(format, vocab_size);
  writer.out_.open(path, std::ios::binary);
  const auto num_windows = static_cast<int32_t>(text.windows.size());
  if (format == LogitsFormat::kF32) {
    writer.out_.write(kF32Magic, kMagicBytes);
    put<int32_t>(writer.out_, std::array{static_cast<int32_t>(vocab_size), static_cast<int32_t>(text.tokens.size()), num_windows,
                                         text.bos.value_or(-1)});
    put<int32_t>(writer.out_, text.tokens);
    for (const auto& window : text.windows) {
      put<int32_t>(writer.out_, std::array{static_cast<int32_t>(window.begin), static_cast<int32_t>(window.count),
                                           static_cast<int32_t>(window.first_row)});
    }
  } else {
    writer.out_.write(kLogProbsMagic, kMagicBytes);
    put<int32_t>(writer.out_, std::array{static_cast<int32_t>(context), static_cast<int32_t>(vocab_size), num_windows});
    put<int32_t>(writer.out_, std::span(text.tokens).first(static_cast<std::size_t>(context * num_windows)));
  }
  MR_RETURN_IF_ERROR(writer.written());
  return writer;
}

void LogitsWriter::encode(std::span<const float> logits, std::span<std::byte> row) const {
  MR_CHECK(static_cast<int64_t>(row.size()) == row_bytes_, "a row's bytes");
  if (format_ == LogitsFormat::kF32) {
    std::memcpy(row.data(), logits.data(), logits.size_bytes());
    return;
  }
  const float top = largest(logits), low = std::max(*std::min_element(logits.begin(), logits.end()), top - kLogProbRange);
  const auto log_sum = static_cast<float>(std::log(softmax_denominator(logits, top)));
  const float scale = (top - low) / kCodeMax, lowest = low - top - log_sum, inverse = scale > 0 ? 1 / scale : 0;
  std::fill(row.begin(), row.end(), std::byte{0});
  std::memcpy(row.data(), &scale, sizeof scale);
  std::memcpy(row.data() + sizeof scale, &lowest, sizeof lowest);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const auto code = static_cast<uint16_t>(std::clamp((logits[i] - low) * inverse + 0.5f, 0.0f, kCodeMax));
    std::memcpy(row.data() + kScaleBytes + i * sizeof code, &code, sizeof code);
  }
}

Status LogitsWriter::write(std::span<const std::byte> rows) {
  put(out_, rows);
  return written();
}

Status LogitsWriter::finish() {
  out_.close();
  return written();
}

Status LogitsWriter::written() const {
  if (!out_) return Status::unavailable(fmt::format("cannot write {}", path_));
  return Status::ok();
}

}  // namespace millrace
