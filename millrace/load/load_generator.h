// Sends requests to an OpenAI-compatible server and times what comes back: one thread, every request a coroutine. Boost.Asio stays inside
// load_generator.cc.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "millrace/base/json.h"
#include "millrace/base/status.h"
#include "millrace/load/answer_reader.h"
#include "millrace/load/load_summary.h"
#include "millrace/load/server_url.h"
#include "millrace/load/workload.h"

namespace millrace {

struct LoadTarget {
  ServerUrl url;
  std::string endpoint = "/v1/completions";  // or "/v1/chat/completions"
  std::string model;
  std::string api_key;  // empty: none is sent
  std::optional<double> temperature = 0;
  bool ignore_eos = true;   // asks for answers of exactly the length given; a field that not every server knows
  json::object extra_body;  // fields of every request; they replace those made here
  double timeout_s = 600;   // for a whole answer
};

// One load. Either `concurrency` clients, each of which sends its next request when its last one is answered (closed loop), or requests
// that arrive as a Poisson process of `request_rate` a second, whatever becomes of the earlier ones (open loop).
struct LoadPoint {
  int64_t number = 0;       // prompts of different numbers differ
  int64_t concurrency = 0;  // 0: open loop
  double request_rate = 0;
  int64_t num_requests = 100;
  double duration_s = 0;  // no request is sent later than that; 0: no limit
  int server_pid = 0;     // whose CPU seconds are counted; 0: nobody's
};

struct LoadProgress {
  int64_t num_done = 0, num_requests = 0, num_output_events = 0;
  double seconds = 0, share = 0;
};

class LoadGenerator {
 public:
  // Errors: a host that is not known.
  static Result<std::unique_ptr<LoadGenerator>> create(LoadTarget target);
  ~LoadGenerator();

  // One GET, for what has to be known before; waits at most 30 s.
  Answer get(const std::string& path);
  // One completion. Errors: what was wrong with the answer, and with which server.
  Result<Answer> complete(const std::string& prompt, int64_t max_tokens);

  void set_model(std::string model);

  // A client whose request fails waits before its next: as long as Retry-After says, 30 s at most, else 50 ms. Open loops never wait.
  // Errors: `server_pid` is no process.
  Result<LoadResult> run(const LoadPoint& point, const Workload& workload, const std::function<void(const LoadProgress&)>& progress);

 private:
  struct Impl;
  explicit LoadGenerator(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Finds how many tokens words have, by the usage that two short requests report; nullopt where the server reports none.
Result<std::optional<TokenScale>> measure_token_scale(LoadGenerator& generator, const Workload& workload);

}  // namespace millrace
