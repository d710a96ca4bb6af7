#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>

#include "millrace/base/status.h"

namespace millrace {

// Closes the file at the end of its life. fd < 0: none.
struct FileDescriptor {
  int fd = -1;
  FileDescriptor() = default;
  explicit FileDescriptor(int opened) : fd(opened) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() {
    if (fd >= 0) ::close(fd);
  }
};

// What errno says of a call that failed just now: "PATH: cannot DOING: why".
inline Status errno_status(const std::string& path, std::string_view doing) {
  const int error = errno;
  const StatusCode code = error == ENOENT                      ? StatusCode::kNotFound
                          : error == ENOSPC || error == EDQUOT ? StatusCode::kResourceExhausted
                                                               : StatusCode::kUnavailable;
  return {code, fmt::format("{}: cannot {}: {}", path, doing, std::strerror(error))};
}

}  // namespace millrace
