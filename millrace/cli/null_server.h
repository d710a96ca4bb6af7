#pragma once

#include <cstdint>

#include "millrace/base/status.h"
#include "millrace/load/server_url.h"

namespace millrace::cli {

// A server that computes nothing, in a process of its own: it answers every completion at once with as many tokens as were asked for, an
// event each. What a load against it costs is what the load generator itself costs. On the loopback interface only.
class NullServer {
 public:
  // `token_ms`: between two tokens of an answer; 0: as fast as they can be sent. Only while this process has no other threads.
  static Result<NullServer> start(int64_t token_ms);
  NullServer(NullServer&& other) noexcept;
  NullServer& operator=(NullServer&&) = delete;
  ~NullServer();  // ends the process

  int pid() const { return pid_; }
  ServerUrl url() const;

 private:
  NullServer(int pid, uint16_t port) : pid_(pid), port_(port) {}
  int pid_ = 0;
  uint16_t port_ = 0;
};

}  // namespace millrace::cli
