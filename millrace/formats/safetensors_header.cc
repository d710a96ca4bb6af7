#include "millrace/formats/safetensors_header.h"

#include <fmt/format.h>

#include <boost/json/basic_parser_impl.hpp>
#include <limits>
#include <optional>

#include "millrace/base/json.h"
#include "millrace/formats/quoted_name.h"

namespace millrace {
namespace {

constexpr std::size_t kMaxEntries = 1'000'000;
constexpr std::size_t kMaxDimensions = 32;

// The events of { NAME: {"dtype": STRING, "shape": [INT...], "data_offsets": [INT, INT]}, "__metadata__": {STRING: STRING} }.
// Depth 1 is inside the outer object, 2 inside an entry, 3 inside one of its arrays. Anything else sets `message`.
struct HeaderEvents {
  static constexpr std::size_t max_object_size = std::numeric_limits<std::size_t>::max();
  static constexpr std::size_t max_array_size = max_object_size;
  static constexpr std::size_t max_key_size = max_object_size;
  static constexpr std::size_t max_string_size = max_object_size;

  SafetensorsHeader header;
  std::string message;

  bool on_document_begin(json::error_code&) { return true; }
  bool on_document_end(json::error_code&) { return true; }

  bool on_object_begin(json::error_code& error) {
    if (depth_ == 0) return ++depth_, true;
    if (depth_ != 1) return fail(error, fmt::format("{}: an object where none belongs", where()));
    ++depth_;
    if (!in_metadata_) {
      if (header.entries.size() == kMaxEntries) return fail(error, fmt::format("more than {} tensors", kMaxEntries));
      entry_ = {};
      entry_.name = name_;
      has_dtype_ = has_shape_ = false;
      num_offsets_ = 0;
    }
    return true;
  }

  bool on_object_end(std::size_t, json::error_code& error) {
    if (--depth_ != 1) return true;
    if (in_metadata_) return true;
    if (!has_dtype_ || !has_shape_ || num_offsets_ != 2) {
      return fail(error, fmt::format("tensor {} lacks dtype, shape or two data_offsets", quoted_name(entry_.name)));
    }
    entry_.begin = offsets_[0];
    entry_.end = offsets_[1];
    header.entries.push_back(std::move(entry_));
    return true;
  }

  bool on_array_begin(json::error_code& error) {
    if (depth_ != 2 || in_metadata_) return fail(error, fmt::format("{}: an array where none belongs", where()));
    ++depth_;
    if (field_ == "shape" && !has_shape_) return has_shape_ = true;
    if (field_ == "data_offsets" && num_offsets_ == 0) return true;
    return fail(error, fmt::format("{}: unexpected array {}", where(), quoted_name(field_)));
  }

  bool on_array_end(std::size_t, json::error_code&) { return --depth_, true; }

  bool on_key_part(std::string_view part, std::size_t, json::error_code&) { return text_ += part, true; }
  bool on_key(std::string_view part, std::size_t, json::error_code&) {
    text_ += part;
    if (depth_ == 1) {
      name_ = std::move(text_);
      in_metadata_ = name_ == "__metadata__";
    } else {
      field_ = std::move(text_);
    }
    text_.clear();
    return true;
  }

  bool on_string_part(std::string_view part, std::size_t, json::error_code&) { return text_ += part, true; }
  bool on_string(std::string_view part, std::size_t, json::error_code& error) {
    text_ += part;
    const std::string value = std::exchange(text_, {});
    if (depth_ == 2 && in_metadata_) return header.metadata.emplace_back(field_, value), true;
    if (depth_ != 2 || field_ != "dtype" || has_dtype_)
      return fail(error, fmt::format("{}: unexpected string {}", where(), quoted_name(value)));
    const std::optional<DType> dtype = dtype_from_safetensors_name(value);
    if (!dtype)
      return fail(error,
                  fmt::format("tensor {} has dtype {}, which is unknown to this build", quoted_name(entry_.name), quoted_name(value)));
    entry_.dtype = *dtype;
    return has_dtype_ = true;
  }

  bool on_int64(int64_t value, std::string_view, json::error_code& error) {
    if (depth_ != 3 || value < 0) return fail(error, fmt::format("{}: unexpected number {}", where(), value));
    if (field_ == "shape") {
      if (entry_.shape.size() == kMaxDimensions) return fail(error, fmt::format("{} has more than {} dimensions", where(), kMaxDimensions));
      return entry_.shape.push_back(value), true;
    }
    if (num_offsets_ == 2) return fail(error, fmt::format("{} has more than two data_offsets", where()));
    offsets_[num_offsets_++] = value;
    return true;
  }

  bool on_number_part(std::string_view, json::error_code&) { return true; }
  bool on_uint64(uint64_t value, std::string_view, json::error_code& error) {
    return fail(error, fmt::format("{}: number {} is too large", where(), value));
  }
  bool on_double(double value, std::string_view, json::error_code& error) {
    return fail(error, fmt::format("{}: number {} is not an integer in range", where(), value));
  }
  bool on_bool(bool, json::error_code& error) { return fail(error, fmt::format("{}: unexpected true or false", where())); }
  bool on_null(json::error_code& error) { return fail(error, fmt::format("{}: unexpected null", where())); }
  bool on_comment_part(std::string_view, json::error_code&) { return true; }
  bool on_comment(std::string_view, json::error_code&) { return true; }

 private:
  bool fail(json::error_code& error, std::string why) {
    message = std::move(why);
    error = json::error::exception;  // any error stops the parser; the message above says which
    return false;
  }
  std::string where() const { return depth_ == 0 ? "the header" : fmt::format("tensor {}", quoted_name(name_)); }

  int depth_ = 0;
  bool in_metadata_ = false, has_dtype_ = false, has_shape_ = false;
  std::size_t num_offsets_ = 0;
  std::array<int64_t, 2> offsets_{};
  std::string text_, name_, field_;
  SafetensorsEntry entry_{};
};

}  // namespace

Result<SafetensorsHeader> parse_safetensors_header(std::string_view text) {
  json::parse_options options;
  options.max_depth = 4;
  json::basic_parser<HeaderEvents> parser(options);
  json::error_code error;
  const std::size_t used = parser.write_some(false, text.data(), text.size(), error);
  HeaderEvents& events = parser.handler();
  if (!events.message.empty()) return Status::data_loss(fmt::format("header: {}", events.message));
  if (error) return Status::data_loss(fmt::format("header: invalid JSON at byte {}: {}", used, error.message()));
  if (text.find_first_not_of(" \t\r\n", used) != std::string_view::npos) {
    return Status::data_loss(fmt::format("header: something follows the JSON at byte {}", used));
  }
  return std::move(events.header);
}

}  // namespace millrace
