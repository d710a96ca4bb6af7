// The server behind server.h: server.cc has its life and the generation endpoints, server_routes.cc who is let in and where requests go,
// server_endpoints.cc the small endpoints.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <ctime>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>

#include "millrace/server/api_error.h"
#include "millrace/server/api_key.h"
#include "millrace/server/encode_call.h"
#include "millrace/server/generation_call.h"
#include "millrace/server/helper_pool.h"
#include "millrace/server/loopback_host.h"
#include "millrace/server/output_mailbox.h"
#include "millrace/server/prometheus_text.h"
#include "millrace/server/server.h"

namespace millrace {

class Server::Impl final : public HttpHandler {
 public:
  using Clock = std::chrono::steady_clock;
  using Exchange = std::shared_ptr<HttpExchange>;

  Impl(ServedModel model, ServerOptions options) : model_(std::move(model)), options_(std::move(options)) {
    if (!options_.api_keys.empty()) keys_.emplace(options_.api_keys);
    loopback_hosts_only_ = !keys_ && is_loopback(options_.host);
    for (ClientKey& key : options_.api_keys) key.key.assign(key.key.size(), '\0');
    options_.api_keys.clear();
    max_model_len_ = model_.encoder != nullptr ? model_.encoder->max_text_tokens() : model_.engine->max_request_tokens();
  }
  ~Impl() override {
    if (drain_thread_.joinable()) drain_thread_.join();
    helpers_.reset();
    http_.reset();  // ends the connections, whose exchanges still call calls_
  }

  Status start() {
    Result<std::unique_ptr<HttpServer>> http = HttpServer::listen(options_.host, options_.port, *this, options_.http);
    if (!http.is_ok()) return http.status();
    http_ = std::move(http).value();
    // Engine callbacks may outlive this server: what they hold is the mailbox, which forgets the server when run() ends.
    waker_ = std::make_shared<Waker>();
    waker_->http = http_.get();
    mailbox_ = std::make_shared<OutputMailbox>([this, waker = waker_] {
      const std::lock_guard lock(waker->mutex);
      if (waker->http != nullptr) waker->http->post([this] { deliver(); });
    });
    helpers_ = std::make_unique<HelperPool>(std::max(1, options_.num_helpers), options_.num_preparing_max, options_.preparing_bytes_max);
    return Status::ok();
  }

  uint16_t port() const { return http_->port(); }

  void run() {
    http_->run(options_.handle_signals);
    for (auto& [id, call] : calls_) call->cancel();
    const std::lock_guard lock(waker_->mutex);
    waker_->http = nullptr;
  }

  void stop() {
    http_->post([this] { begin_drain(); });
  }

  // ---- HttpHandler ----

  std::optional<HttpResponse> refuse(const HttpRequest& head) override;
  void handle(Exchange exchange) override;
  HttpResponse protocol_error(int status, std::string_view what) override {
    return counted("other", error_response(http_error(status, std::string(what))));
  }
  void on_signal(int count) override {
    if (count == 1) {
      begin_drain();
    } else {
      http_->stop(std::chrono::milliseconds(0));
      model_.encoder != nullptr ? model_.encoder->stop() : model_.engine->stop();
    }
  }

 private:
  struct Route {
    std::string_view method, path;
    void (Impl::*handle)(const Exchange& exchange);
    bool open = false;  // needs no key
    bool while_draining = false;
  };
  static const std::array<Route, 16> kRoutes;

  struct Waker {
    std::mutex mutex;
    HttpServer* http = nullptr;
  };

  // A response on its way to the client, counted by route and made safe for browsers.
  HttpResponse counted(std::string_view route, HttpResponse response) {
    ++http_metrics_.responses[{route, response.status}];
    response.headers.emplace_back("X-Content-Type-Options", "nosniff");
    response.close = response.close || draining_;
    return response;
  }

  // Counts what the handlers behind it answer.
  class CountingExchange;

  static const Route* find_route(std::string_view path, std::string_view method, std::string& allowed);

  void chat(const Exchange& exchange) { generate(exchange, Endpoint::kChat); }
  void completions(const Exchange& exchange) { generate(exchange, Endpoint::kCompletions); }
  void generate(const Exchange& exchange, Endpoint endpoint);
  void embeddings(const Exchange& exchange) { encode(exchange, Endpoint::kEmbeddings); }
  void classify(const Exchange& exchange) { encode(exchange, Endpoint::kClassify); }
  void score(const Exchange& exchange) { encode(exchange, Endpoint::kScore); }
  void rerank(const Exchange& exchange) { encode(exchange, Endpoint::kRerank); }
  void encode(const Exchange& exchange, Endpoint endpoint);
  void start_encode(EncodeCall call, const Exchange& exchange);
  void finish_encode(uint64_t call_id, const std::shared_ptr<EncodeResult>& result);
  void answer_encode(uint64_t call_id, HttpResponse response);
  std::optional<ApiError> check_kind(const Exchange& exchange, bool encoder) const;
  void tokenize(const Exchange& exchange);
  void detokenize(const Exchange& exchange);
  void models(const Exchange& exchange);
  void health(const Exchange& exchange);
  void metrics(const Exchange& exchange);
  void engine_stats(const Exchange& exchange);
  void asset(const Exchange& exchange);

  // Runs `work` on a helper with the request's body, and `then` with what it gave on the I/O thread, unless the client has gone.
  template <class T>
  void on_helper(const Exchange& exchange, std::function<T(std::string_view body)> work, std::function<void(T&)> then);

  EngineMetrics engine_metrics() const { return model_.encoder != nullptr ? model_.encoder->metrics() : model_.engine->metrics(); }
  std::optional<ApiError> check_model_name(const ApiRequest& request) const;
  std::string model_json() const;
  HttpResponse json_response(std::string body) const {
    HttpResponse response;
    response.body = std::move(body);
    return response;
  }

  void start_call(PreparedCall prepared, const Exchange& exchange);
  void deliver();
  void begin_drain();
  void drain_when_prepared();

  ServedModel model_;
  DryBreakers dry_breakers_{*model_.tokenizer};
  ServerOptions options_;
  std::optional<ApiKeys> keys_;
  bool loopback_hosts_only_ = false;  // nothing but the Host field keeps pages of other sites out
  int64_t max_model_len_ = 0;
  std::unique_ptr<HttpServer> http_;
  std::shared_ptr<Waker> waker_;
  std::shared_ptr<OutputMailbox> mailbox_;
  std::unique_ptr<HelperPool> helpers_;
  std::thread drain_thread_;

  // I/O thread only:
  std::unordered_map<uint64_t, std::shared_ptr<GenerationCall>> calls_;
  struct PendingEncode {
    Exchange exchange;
    std::shared_ptr<const EncodeCall> call;
  };
  std::unordered_map<uint64_t, PendingEncode> encodes_;
  uint64_t next_call_id_ = 1;
  int64_t num_preparing_ = 0;
  bool draining_ = false;
  Clock::time_point drain_deadline_{};
  HttpMetrics http_metrics_;
  std::mt19937_64 random_{std::random_device{}()};
  const int64_t created_ = static_cast<int64_t>(std::time(nullptr));
  const Clock::time_point started_ = Clock::now();
};

template <class T>
void Server::Impl::on_helper(const Exchange& exchange, std::function<T(std::string_view body)> work, std::function<void(T&)> then) {
  auto gone = std::make_shared<std::atomic<bool>>(false);
  exchange->on_gone([gone] { *gone = true; });
  const auto body = std::make_shared<const std::string>(exchange->take_body());
  const auto job_bytes = static_cast<int64_t>(body->size());
  const bool taken = helpers_->submit(
      [this, gone, body, work = std::move(work), then = std::move(then)] {
        auto result = std::make_shared<std::optional<T>>();
        if (!*gone) {
          try {
            result->emplace(work(*body));
          } catch (const std::exception&) {
            // Out of memory: the request fails with what an empty result stands for below.
          }
        }
        http_->post([this, gone, result, then] {
          --num_preparing_;
          if (*gone) return;
          T failed{};
          then(*result ? **result : failed);
        });
      },
      job_bytes);
  if (taken) {
    ++num_preparing_;
  } else {
    exchange->respond(error_response(http_error(429, "too many requests wait to be read; try again later")));
  }
}

}  // namespace millrace
