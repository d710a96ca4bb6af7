// Serves a model over HTTP: OpenAI's chat and text completions, vLLM's additions, metrics, and the built-in page.
//
// One I/O thread reads, writes and answers what is quick; helper threads parse, render templates and tokenize; the engine's own
// thread makes tokens. No client can stop the server or another client's request: docs in README.md, limits below.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "millrace/base/status.h"
#include "millrace/server/api_key.h"
#include "millrace/server/http_server.h"
#include "millrace/server/served_model.h"

namespace millrace {

struct ServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;  // 0: any free one
  // From the environment or a file, never the command line; none: none is asked for. A key's index is GenerationRequest::client.
  std::vector<ClientKey> api_keys;
  bool allow_open_without_key = false;              // binding beyond loopback needs a key unless this is set
  std::chrono::milliseconds drain_timeout{30'000};  // after SIGTERM
  bool allow_priority = false;                      // requests may say another `priority` than 0, and so overtake everybody
  int num_helpers = 2;                              // threads that parse and tokenize; of several, one is kept from large requests
  int64_t num_preparing_max = 1024;                 // requests waiting for a helper
  int64_t preparing_bytes_max = 128 << 20;          // their bodies
  std::chrono::milliseconds stall_timeout{60'000};  // a step that takes longer makes /health fail; a large model's may take many seconds
  bool handle_signals = true;
  HttpLimits http;
};

class Server {
 public:
  // Binds. Errors: invalid_argument (options), unavailable (the address).
  static Result<std::unique_ptr<Server>> create(ServedModel model, ServerOptions options);
  ~Server();

  uint16_t port() const;

  // Serves on the calling thread until SIGTERM or SIGINT (or stop()) and the drain that follows.
  void run();

  // As the first SIGTERM does: new requests are refused, running ones finish within drain_timeout. Any thread.
  void stop();

 private:
  class Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// create() and run(); `on_ready` is called with the port once clients can connect.
Status serve(ServedModel model, ServerOptions options, const std::function<void(uint16_t port)>& on_ready = {});

}  // namespace millrace
