#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "millrace/base/check.h"

namespace millrace {

// Why something the world gave us (a file, a request, a limit) could not be used. Our own mistakes are MR_CHECK instead.
enum class StatusCode {
  kOk,
  kInvalidArgument,    // the input is wrong, and will be wrong again
  kNotFound,           // a named thing does not exist
  kDataLoss,           // a file is truncated or corrupt
  kUnsupported,        // well-formed, but not something this build can do
  kResourceExhausted,  // a limit (memory, queue, fuel) was reached
  kUnavailable,        // may work later (network, draining server)
  kCancelled,
  kInternal,
};

std::string_view status_code_name(StatusCode code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  static Status ok() { return {}; }
  static Status invalid_argument(std::string message) { return {StatusCode::kInvalidArgument, std::move(message)}; }
  static Status not_found(std::string message) { return {StatusCode::kNotFound, std::move(message)}; }
  static Status data_loss(std::string message) { return {StatusCode::kDataLoss, std::move(message)}; }
  static Status unsupported(std::string message) { return {StatusCode::kUnsupported, std::move(message)}; }
  static Status resource_exhausted(std::string message) { return {StatusCode::kResourceExhausted, std::move(message)}; }
  static Status unavailable(std::string message) { return {StatusCode::kUnavailable, std::move(message)}; }
  static Status cancelled(std::string message) { return {StatusCode::kCancelled, std::move(message)}; }
  static Status internal(std::string message) { return {StatusCode::kInternal, std::move(message)}; }

  bool is_ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

  // The same error with "where: " put before its message, so that the reader knows which file or field was meant.
  Status with_context(std::string_view where) const;

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

// A value, or the Status that says why there is none.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT: implicit by design
  Result(Status status) : status_(std::move(status)) { MR_CHECK(!status_.is_ok(), "a Result without value needs an error"); }  // NOLINT

  bool is_ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() & {
    MR_CHECK(is_ok(), status_.message());
    return *value_;
  }
  const T& value() const& {
    MR_CHECK(is_ok(), status_.message());
    return *value_;
  }
  T&& value() && {
    MR_CHECK(is_ok(), status_.message());
    return std::move(*value_);
  }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }

 private:
  Status status_;
  std::optional<T> value_;
};

}  // namespace millrace

#define MR_CONCAT_INNER(a, b) a##b
#define MR_CONCAT(a, b) MR_CONCAT_INNER(a, b)

// Returns from the enclosing function when `expression` (a Status) is an error.
#define MR_RETURN_IF_ERROR(expression)                                                     \
  do {                                                                                     \
    if (::millrace::Status mr_status = (expression); !mr_status.is_ok()) return mr_status; \
  } while (false)

// MR_ASSIGN_OR_RETURN(auto file, MappedFile::open(path));
#define MR_ASSIGN_OR_RETURN(declaration, expression) MR_ASSIGN_OR_RETURN_INNER(MR_CONCAT(mr_result_, __LINE__), declaration, expression)
#define MR_ASSIGN_OR_RETURN_INNER(result, declaration, expression) \
  auto result = (expression);                                      \
  if (!result.is_ok()) return result.status();                     \
  declaration = std::move(result).value()
