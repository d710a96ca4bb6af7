#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace millrace::jinja {

// Why a template stopped. These are thrown inside the engine only; ChatTemplate turns them into a Status with line and column.
struct TemplateError {  // what Python would raise: a type error, an undefined variable, a missing key
  std::string message;
};
struct RaisedByTemplate {  // the template called raise_exception
  std::string message;
};
struct LimitError {
  std::string message;
};
struct SyntaxError {
  std::size_t offset;  // into the normalized source
  std::string message;
};

[[noreturn]] inline void fail(std::string message) { throw TemplateError{std::move(message)}; }

// How much more one render may do. A step and 256 bytes of text built or searched cost the same, so fuel bounds time and memory.
class Budget {
 public:
  static constexpr int64_t kBytesPerStep = 256;
  explicit Budget(int64_t fuel) : left_(fuel > INT64_MAX / kBytesPerStep ? INT64_MAX : fuel * kBytesPerStep) {}

  void charge_steps(int64_t num_steps) {
    if (num_steps > left_ / kBytesPerStep) exhausted();
    left_ -= num_steps * kBytesPerStep;
  }
  void charge_bytes(std::size_t num_bytes) {
    if (num_bytes > static_cast<std::size_t>(left_)) exhausted();
    left_ -= static_cast<int64_t>(num_bytes);
  }

 private:
  [[noreturn]] void exhausted() {
    left_ = 0;
    throw LimitError{"the template needs more work than one prompt is allowed (fuel is used up)"};
  }

  int64_t left_;
};

}  // namespace millrace::jinja
