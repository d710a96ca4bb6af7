#include "millrace/load/load_generator.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <cmath>
#include <utility>
#include <vector>

#include "millrace/base/clock.h"
#include "millrace/base/json_text.h"
#include "millrace/load/process_cpu.h"

namespace millrace {
namespace {

namespace asio = boost::asio;
using asio::awaitable;
using asio::ip::tcp;
using boost::system::error_code;

constexpr std::size_t kReadBytes = 16 << 10;
constexpr std::chrono::milliseconds kTick{50};  // how often deadlines are looked at and progress is told
constexpr double kConnectTimeoutS = 10, kGetTimeoutS = 30;
constexpr double kFailurePauseS = 0.05, kRetryAfterMaxS = 30;

struct Connection {
  explicit Connection(asio::io_context& io) : socket(io), buffer(kReadBytes, '\0') {}
  void close() {
    error_code ignored;
    static_cast<void>(socket.close(ignored));  // it gives the same error once more
  }

  tcp::socket socket;
  std::string buffer;   // of one read
  double deadline = 0;  // 0: none
  bool timed_out = false;
};

std::chrono::nanoseconds to_duration(double seconds) { return std::chrono::nanoseconds(std::llround(seconds * 1e9)); }

}  // namespace

struct LoadGenerator::Impl {
  explicit Impl(LoadTarget load_target) : target(std::move(load_target)), tick(io) {}

  // ---- one request

  std::string head(std::string_view method, const std::string& path) const {
    std::string text = fmt::format("{} {}{} HTTP/1.1\r\nHost: {}\r\nUser-Agent: millrace-bench/" MILLRACE_VERSION "\r\n", method,
                                   target.url.base_path, path, target.url.authority());
    if (!target.api_key.empty()) text += fmt::format("Authorization: Bearer {}\r\n", target.api_key);
    return text;
  }

  std::string completion_request(const std::string& prompt, int64_t max_tokens) const {
    json::object body{{"model", target.model}};
    if (target.endpoint.ends_with("/chat/completions")) {
      body["messages"] = json::array{json::object{{"role", "user"}, {"content", prompt}}};
    } else {
      body["prompt"] = prompt;
    }
    body["max_tokens"] = max_tokens;
    if (target.temperature) body["temperature"] = *target.temperature;
    if (target.ignore_eos) body["ignore_eos"] = true;
    body["stream"] = true;
    body["stream_options"] = json::object{{"include_usage", true}};
    for (const auto& field : target.extra_body) body[field.key()] = field.value();
    const std::string text = json_text(body);
    return fmt::format("{}Content-Type: application/json\r\nAccept: text/event-stream\r\nContent-Length: {}\r\n\r\n{}",
                       head("POST", target.endpoint), text.size(), text);
  }

  awaitable<Answer> complete(std::string request) {
    Answer answer = co_await exchange(std::move(request), target.timeout_s);
    if (answer.failure == Failure::kNone && !answer.is_stream) {
      answer.failure = Failure::kMalformed;
      answer.message = fmt::format("the answer to \"stream\": true is no event stream but {}",
                                   answer.content_type.empty() ? "of no type" : answer.content_type);
    }
    co_return answer;
  }

  Connection* acquire() {
    if (idle.empty()) {
      connections.push_back(std::make_unique<Connection>(io));
      idle.push_back(connections.back().get());
    }
    Connection* connection = idle.back();
    idle.pop_back();
    return connection;
  }

  // Sends `request` and reads its answer. A connection that was kept open may have been closed by the server meanwhile: then once more on a
  // new one.
  awaitable<Answer> exchange(std::string request, double timeout_s) {
    const double deadline = steady_seconds() + timeout_s;
    Answer answer;
    for (bool again = true; again;) {
      Connection* connection = acquire();
      const bool reused = connection->socket.is_open();
      connection->timed_out = false;
      connection->deadline = reused ? deadline : std::min(deadline, steady_seconds() + kConnectTimeoutS);
      AnswerReader reader;
      bool reusable = false;
      error_code error;
      if (!reused) {
        co_await connection->socket.async_connect(endpoint, asio::redirect_error(asio::use_awaitable, error));
        if (!error) connection->socket.set_option(tcp::no_delay(true), error);
      }
      if (error) {
        answer = Answer{};
        answer.failure = connection->timed_out ? Failure::kTimeout : Failure::kConnect;
        answer.message = connection->timed_out ? fmt::format("no connection within {} s", kConnectTimeoutS) : error.message();
        answer.end_time = steady_seconds();
      } else {
        connection->deadline = deadline;
        co_await asio::async_write(connection->socket, asio::buffer(request), asio::redirect_error(asio::use_awaitable, error));
        bool complete = false;
        // Also when writing failed: a server may refuse a request before it has read it.
        while (!complete && !connection->timed_out) {
          error_code read_error;
          const std::size_t num_bytes = co_await connection->socket.async_read_some(asio::buffer(connection->buffer),
                                                                                    asio::redirect_error(asio::use_awaitable, read_error));
          const double now = steady_seconds();
          if (num_bytes > 0) complete = reader.put(std::string_view(connection->buffer.data(), num_bytes), now);
          if (read_error && !complete) {
            reader.put_end(now);
            complete = true;
          }
        }
        reusable = reader.can_reuse_connection();
        answer = reader.take_answer();
        if (connection->timed_out) {
          answer.failure = Failure::kTimeout;
          answer.message = fmt::format("no complete answer within {} s, {} outputs had come", timeout_s, answer.output_times.size());
          answer.end_time = steady_seconds();
        }
      }
      again = reused && !connection->timed_out && !reader.has_begun() && answer.failure == Failure::kCut;
      connection->deadline = 0;
      if (!reusable) connection->close();
      idle.push_back(connection);
    }
    co_return answer;
  }

  void close_overdue() {
    const double now = steady_seconds();
    for (const auto& connection : connections) {
      if (connection->deadline > 0 && now > connection->deadline) {
        connection->timed_out = true;
        connection->close();
      }
    }
  }

  awaitable<void> watch() {
    while (num_live > 0) {
      tick.expires_after(kTick);
      error_code error;
      co_await tick.async_wait(asio::redirect_error(asio::use_awaitable, error));
      close_overdue();
      if (on_tick) on_tick();
    }
  }

  void one_ended() {
    if (--num_live == 0) tick.cancel();
  }

  // ---- one alone

  awaitable<void> keep(awaitable<Answer> pending, Answer* answer) {
    *answer = co_await std::move(pending);
    one_ended();
  }

  Answer wait_for(awaitable<Answer> pending) {
    Answer answer;
    num_live = 1;
    on_tick = nullptr;
    asio::co_spawn(io, keep(std::move(pending), &answer), asio::detached);
    asio::co_spawn(io, watch(), asio::detached);
    io.restart();
    io.run();
    return answer;
  }

  // ---- a load

  void record(Answer answer, double due_s) {
    RequestRecord record;
    record.due_s = due_s;
    record.end_s = answer.end_time - start;
    record.failure = answer.failure;
    record.status = answer.status;
    record.message = std::move(answer.message);
    record.prompt_tokens = answer.prompt_tokens.value_or(0);
    record.cached_tokens = answer.cached_tokens.value_or(0);
    record.counted_by_server = answer.completion_tokens.has_value();
    record.completion_tokens = answer.completion_tokens.value_or(static_cast<int64_t>(answer.output_times.size()));
    const std::vector<double>& times = answer.output_times;
    record.first_output_s = times.empty() ? record.end_s : times.front() - start;
    record.last_output_s = times.empty() ? record.end_s : times.back() - start;
    if (record.failure == Failure::kNone) {
      for (std::size_t i = 1; i < times.size(); ++i) result.gaps_s.push_back(times[i] - times[i - 1]);
    }
    num_output_events += static_cast<int64_t>(times.size());
    result.duration_s = std::max(result.duration_s, record.end_s);
    result.records.push_back(std::move(record));
  }

  // Seconds that a client waits before its next request.
  awaitable<double> request_once(const Workload* workload, LoadPoint point, int64_t index, double due_s) {
    const PlannedRequest planned = workload->request(point.number, index);
    result.num_in_flight_max = std::max(result.num_in_flight_max, ++num_in_flight);
    std::string request = completion_request(planned.prompt, planned.output_tokens);
    Answer answer = co_await complete(std::move(request));
    --num_in_flight;
    double pause = 0;
    if (answer.failure != Failure::kNone) pause = std::min(answer.retry_after_s.value_or(kFailurePauseS), kRetryAfterMaxS);
    record(std::move(answer), due_s);
    co_return pause;
  }

  bool is_over(const LoadPoint& point, double now_s) const {
    return next_index >= point.num_requests || (point.duration_s > 0 && now_s >= point.duration_s);
  }

  awaitable<void> sleep_until(double due_s) {
    asio::steady_timer timer(io);
    timer.expires_after(to_duration(std::max(0.0, start + due_s - steady_seconds())));
    error_code ignored;
    co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }

  awaitable<void> client(const Workload* workload, LoadPoint point) {
    for (double now_s = steady_seconds() - start; !is_over(point, now_s); now_s = steady_seconds() - start) {
      const double pause = co_await request_once(workload, point, next_index++, now_s);
      if (pause > 0 && !is_over(point, steady_seconds() - start + pause)) co_await sleep_until(steady_seconds() - start + pause);
    }
    one_ended();
  }

  awaitable<void> arrival(const Workload* workload, LoadPoint point, int64_t index, double due_s) {
    co_await request_once(workload, point, index, due_s);
    one_ended();
  }

  awaitable<void> arrivals(const Workload* workload, LoadPoint point) {
    double due_s = 0;
    while (!is_over(point, due_s)) {
      const int64_t index = next_index++;
      due_s += workload->arrival_gap_s(point.number, index, point.request_rate);
      if (point.duration_s > 0 && due_s >= point.duration_s) break;
      if (start + due_s > steady_seconds()) co_await sleep_until(due_s);
      result.late_s_max = std::max(result.late_s_max, steady_seconds() - start - due_s);
      ++num_live;
      asio::co_spawn(io, arrival(workload, point, index, due_s), asio::detached);
    }
    one_ended();
  }

  LoadTarget target;
  asio::io_context io{1};
  tcp::endpoint endpoint;
  asio::steady_timer tick;
  std::vector<std::unique_ptr<Connection>> connections;
  std::vector<Connection*> idle;  // the last used at the end, so that few are kept busy
  std::function<void()> on_tick;

  double start = 0;
  int64_t num_live = 0;  // coroutines that the loop waits for
  int64_t next_index = 0, num_in_flight = 0, num_output_events = 0;
  LoadResult result;
};

LoadGenerator::LoadGenerator(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LoadGenerator::~LoadGenerator() = default;

Result<std::unique_ptr<LoadGenerator>> LoadGenerator::create(LoadTarget target) {
  auto impl = std::make_unique<Impl>(std::move(target));
  const ServerUrl& url = impl->target.url;
  error_code error;
  tcp::resolver resolver(impl->io);
  const auto found = resolver.resolve(url.host, std::to_string(url.port), error);
  if (error || found.empty()) return Status::not_found(fmt::format("the host {} is not known: {}", url.host, error.message()));
  // Of several addresses the first that takes a connection; of none the first, whose error is told later.
  impl->endpoint = found.begin()->endpoint();
  for (const auto& entry : found) {
    if (found.size() == 1) break;
    tcp::socket socket(impl->io);
    if (!socket.connect(entry.endpoint(), error)) {
      impl->endpoint = entry.endpoint();
      break;
    }
  }
  return std::unique_ptr<LoadGenerator>(new LoadGenerator(std::move(impl)));
}

void LoadGenerator::set_model(std::string model) { impl_->target.model = std::move(model); }

Answer LoadGenerator::get(const std::string& path) {
  return impl_->wait_for(impl_->exchange(impl_->head("GET", path) + "\r\n", kGetTimeoutS));
}

Result<Answer> LoadGenerator::complete(const std::string& prompt, int64_t max_tokens) {
  Answer answer = impl_->wait_for(impl_->complete(impl_->completion_request(prompt, max_tokens)));
  if (answer.failure == Failure::kNone) return answer;
  const std::string where = impl_->target.url.text() + impl_->target.endpoint;
  const std::string what =
      answer.failure == Failure::kStatus ? fmt::format("status {}", answer.status) : std::string(failure_name(answer.failure));
  return Status::unavailable(fmt::format("{}: {}: {}", where, what, answer.message));
}

Result<LoadResult> LoadGenerator::run(const LoadPoint& point, const Workload& workload,
                                      const std::function<void(const LoadProgress&)>& progress) {
  Impl& impl = *impl_;
  double server_cpu_s = 0;
  if (point.server_pid > 0) {
    MR_ASSIGN_OR_RETURN(server_cpu_s, process_tree_cpu_seconds(point.server_pid));
  }
  impl.result = {};
  impl.next_index = impl.num_in_flight = impl.num_output_events = 0;
  impl.start = steady_seconds();
  const double own_cpu_s = own_cpu_seconds();
  impl.on_tick = [&] {
    LoadProgress now{.num_done = static_cast<int64_t>(impl.result.records.size()),
                     .num_requests = point.num_requests,
                     .num_output_events = impl.num_output_events,
                     .seconds = steady_seconds() - impl.start};
    now.share = static_cast<double>(now.num_done) / static_cast<double>(std::max<int64_t>(1, point.num_requests));
    if (point.duration_s > 0) now.share = std::max(now.share, std::min(1.0, now.seconds / point.duration_s));
    if (progress) progress(now);
  };
  const int64_t num_loops = point.concurrency > 0 ? point.concurrency : 1;
  impl.num_live = num_loops;
  for (int64_t i = 0; i < num_loops; ++i) {
    if (point.concurrency > 0) {
      asio::co_spawn(impl.io, impl.client(&workload, point), asio::detached);
    } else {
      asio::co_spawn(impl.io, impl.arrivals(&workload, point), asio::detached);
    }
  }
  asio::co_spawn(impl.io, impl.watch(), asio::detached);
  impl.io.restart();
  impl.io.run();
  impl.on_tick = nullptr;
  impl.result.generator_cpu_s = own_cpu_seconds() - own_cpu_s;
  if (point.server_pid > 0) {
    // A server that is gone by now has no figure; what became of its requests says the rest.
    if (const auto after = process_tree_cpu_seconds(point.server_pid); after.is_ok()) impl.result.server_cpu_s = *after - server_cpu_s;
  }
  return std::move(impl.result);
}

Result<std::optional<TokenScale>> measure_token_scale(LoadGenerator& generator, const Workload& workload) {
  constexpr int64_t kFewWords = 16, kMoreWords = 48;
  MR_ASSIGN_OR_RETURN(const Answer few, generator.complete(workload.words(kFewWords, 0), 1));
  MR_ASSIGN_OR_RETURN(const Answer more, generator.complete(workload.words(kMoreWords, 1), 1));
  if (!few.prompt_tokens || !more.prompt_tokens) return std::optional<TokenScale>();
  TokenScale scale;
  scale.per_word = static_cast<double>(*more.prompt_tokens - *few.prompt_tokens) / (kMoreWords - kFewWords);
  if (!(scale.per_word >= 0.1 && scale.per_word <= 100)) return std::optional<TokenScale>();  // counts that cannot be of these words
  scale.extra = std::max(0.0, static_cast<double>(*few.prompt_tokens) - scale.per_word * kFewWords);
  return std::optional(scale);
}

}  // namespace millrace
