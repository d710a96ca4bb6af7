#pragma once

#include <string_view>

namespace millrace {

// Prints the failed condition with its place and message, and aborts. A stopped server is better than wrong tokens.
[[noreturn]] void check_failed(const char* file, int line, const char* condition, std::string_view message);

}  // namespace millrace

// For promises between our own parts; on in release. What a user, file or socket supplies can never reach a check.
#define MR_CHECK(condition, message) \
  (static_cast<bool>(condition) ? static_cast<void>(0) : ::millrace::check_failed(__FILE__, __LINE__, #condition, message))

// The same inside hot loops: on in debug and sanitizer builds only.
#ifdef NDEBUG
#define MR_DCHECK(condition, message) static_cast<void>(0)
#else
#define MR_DCHECK(condition, message) MR_CHECK(condition, message)
#endif
