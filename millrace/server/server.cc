#include "millrace/server/server.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <ctime>
#include <optional>
#include <random>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "millrace/server/api_error.h"
#include "millrace/server/api_key.h"
#include "millrace/server/generation_call.h"
#include "millrace/server/helper_pool.h"
#include "millrace/server/json_writer.h"
#include "millrace/server/loopback_host.h"
#include "millrace/server/openai_response.h"
#include "millrace/server/output_mailbox.h"
#include "millrace/server/prometheus_text.h"
#include "millrace/server/prompt_builder.h"
#include "millrace/server/request_table.h"
#include "millrace/server/web_assets.h"

namespace millrace {
namespace {

using Clock = std::chrono::steady_clock;
using Exchange = std::shared_ptr<HttpExchange>;

constexpr std::chrono::milliseconds kFlushGrace{2'000};  // for finished answers to reach their clients when the server ends

// "org%2Fname" is "org/name"; what is no escape stays as it is.
std::string percent_decoded(std::string_view text) {
  std::string decoded;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned char byte = static_cast<unsigned char>(text[i]);
    if (text[i] == '%' && text.size() - i > 2) {
      const char* end = text.data() + i + 3;
      unsigned char escaped = 0;
      if (std::from_chars(text.data() + i + 1, end, escaped, 16).ptr == end) {
        byte = escaped;
        i += 2;
      }
    }
    decoded += static_cast<char>(byte);
  }
  return decoded;
}

// What browsers are told about the page: nothing from elsewhere, nothing inline, no framing.
constexpr std::string_view kPagePolicy =
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'";

bool is_json(std::string_view content_type) {
  std::string type(content_type.substr(0, content_type.find(';')));
  while (!type.empty() && type.back() == ' ') type.pop_back();
  std::transform(type.begin(), type.end(), type.begin(), [](unsigned char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c); });
  return type == "application/json";
}

}  // namespace

class Server::Impl final : public HttpHandler {
 public:
  Impl(ServedModel model, ServerOptions options) : model_(std::move(model)), options_(std::move(options)) {
    if (!options_.api_key.empty()) key_.emplace(options_.api_key);
    loopback_hosts_only_ = !key_ && is_loopback(options_.host);
    options_.api_key.assign(options_.api_key.size(), '\0');
    options_.api_key.clear();
    max_model_len_ = model_.engine->max_request_tokens();
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
      model_.engine->stop();
    }
  }

 private:
  struct Route {
    std::string_view method, path;
    void (Impl::*handle)(const Exchange& exchange);
    bool open = false;          // needs no key
    bool while_draining = false;
  };
  static const std::array<Route, 9> kRoutes;

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
  ServerOptions options_;
  std::optional<ApiKey> key_;
  bool loopback_hosts_only_ = false;  // nothing but the Host field keeps pages of other sites out
  int64_t max_model_len_ = 0;
  std::unique_ptr<HttpServer> http_;
  std::shared_ptr<Waker> waker_;
  std::shared_ptr<OutputMailbox> mailbox_;
  std::unique_ptr<HelperPool> helpers_;
  std::thread drain_thread_;

  // I/O thread only:
  std::unordered_map<uint64_t, std::shared_ptr<GenerationCall>> calls_;
  uint64_t next_call_id_ = 1;
  int64_t num_preparing_ = 0;
  bool draining_ = false;
  Clock::time_point drain_deadline_{};
  HttpMetrics http_metrics_;
  std::mt19937_64 random_{std::random_device{}()};
  const int64_t created_ = static_cast<int64_t>(std::time(nullptr));
  const Clock::time_point started_ = Clock::now();
};

const std::array<Server::Impl::Route, 9> Server::Impl::kRoutes = {{
    {"POST", "/v1/chat/completions", &Impl::chat},
    {"POST", "/v1/completions", &Impl::completions},
    {"POST", "/tokenize", &Impl::tokenize},
    {"POST", "/detokenize", &Impl::detokenize},
    {"GET", "/v1/models", &Impl::models},
    {"GET", "/health", &Impl::health, true, true},
    {"GET", "/metrics", &Impl::metrics, false, true},
    {"GET", "/v1/engine/stats", &Impl::engine_stats},
    {"GET", "/", &Impl::asset},
}};

class Server::Impl::CountingExchange final : public HttpExchange {
 public:
  CountingExchange(Impl& server, std::string_view route, Exchange exchange) : server_(server), route_(route), exchange_(std::move(exchange)) {}

  const HttpRequest& request() const override { return exchange_->request(); }
  std::string take_body() override { return exchange_->take_body(); }
  void respond(HttpResponse response) override { exchange_->respond(server_.counted(route_, std::move(response))); }
  void start_stream(HttpResponse head) override { exchange_->start_stream(server_.counted(route_, std::move(head))); }
  void write(std::string_view bytes) override { exchange_->write(bytes); }
  void finish() override { exchange_->finish(); }
  void on_gone(std::function<void()> callback) override { exchange_->on_gone(std::move(callback)); }

 private:
  Impl& server_;
  std::string_view route_;
  Exchange exchange_;
};

// ---- routing ----

const Server::Impl::Route* Server::Impl::find_route(std::string_view path, std::string_view method, std::string& allowed) {
  for (const WebAsset& asset : web_assets()) {
    if (asset.path == path) path = "/";
  }
  if (path.starts_with("/v1/models/")) path = "/v1/models";
  for (const Route& route : kRoutes) {
    if (route.path != path) continue;
    if (route.method == method) return &route;
    allowed = route.method == "GET" ? "GET, HEAD" : route.method;
  }
  return nullptr;
}

std::optional<HttpResponse> Server::Impl::refuse(const HttpRequest& head) {
  std::string allowed;
  const Route* route = find_route(head.path, head.method, allowed);
  const std::string_view name = route == nullptr ? "other" : route->path;
  const auto refusal = [&](int status, std::string message, std::string header = {}, std::string value = {}) {
    HttpResponse response = error_response(http_error(status, std::move(message)));
    if (!header.empty()) response.headers.emplace_back(std::move(header), std::move(value));
    return counted(name, std::move(response));
  };
  if (loopback_hosts_only_ && head.host && !is_loopback_host(*head.host)) {
    return refusal(403, fmt::format("the Host field is \"{}\"; without an API key this server answers to localhost and loopback addresses only, "
                                    "so that no page elsewhere can reach it under a name of its own (set MILLRACE_API_KEY to use other names)",
                                    head.host->substr(0, 128)));
  }
  if (key_ && (route == nullptr || !route->open) && !key_->authorizes(head.authorization)) {
    // A browser that opens the page is asked for the key (as password); programs send it as a bearer token.
    const bool page = route != nullptr && route->path == "/";
    return refusal(401, "the request needs this server's API key: \"Authorization: Bearer <key>\"", "WWW-Authenticate",
                   page ? "Basic realm=\"millrace\", charset=\"UTF-8\"" : "Bearer realm=\"millrace\"");
  }
  if (route == nullptr && allowed.empty()) return refusal(404, fmt::format("there is no {} here", head.path.substr(0, 128)));
  if (route == nullptr) return refusal(405, fmt::format("{} answers to {}, not to {}", head.path.substr(0, 128), allowed, head.method.substr(0, 32)), "Allow", allowed);
  if (draining_ && !route->while_draining) return refusal(503, "the server is shutting down");
  if (route->method == "POST") {
    // A page on another site can make a browser send forms and plain text here unasked, but not JSON.
    if (!is_json(head.content_type)) {
      return refusal(415, fmt::format("Content-Type is \"{}\", expected \"application/json\"", head.content_type.substr(0, 128)));
    }
    if (!head.content_encoding.empty() && head.content_encoding != "identity") {
      return refusal(415, fmt::format("Content-Encoding is \"{}\", expected none", head.content_encoding.substr(0, 64)));
    }
  }
  return std::nullopt;
}

void Server::Impl::handle(Exchange exchange) {
  std::string allowed;
  const Route* route = find_route(exchange->request().path, exchange->request().method, allowed);
  MR_CHECK(route != nullptr, "refuse() lets only known routes through");
  (this->*route->handle)(std::make_shared<CountingExchange>(*this, route->path, std::move(exchange)));
}

// ---- generation ----

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

std::optional<ApiError> Server::Impl::check_model_name(const ApiRequest& request) const {
  if (request.model.empty() || request.model == model_.name || std::find(model_.aliases.begin(), model_.aliases.end(), request.model) != model_.aliases.end()) {
    return std::nullopt;
  }
  ApiError error = http_error(404, fmt::format("the model \"{}\" is not served here, expected \"{}\"", request.model.substr(0, 128), model_.name));
  error.type = "invalid_request_error";
  error.param = "model";
  error.code = "model_not_found";
  return error;
}

void Server::Impl::generate(const Exchange& exchange, Endpoint endpoint) {
  struct Prepared {
    std::optional<ApiError> error = http_error(500, "the server ran out of memory on this request");
    PreparedCall call;
  };
  on_helper<Prepared>(
      exchange,
      [this, endpoint](std::string_view body) {
        Prepared prepared;
        prepared.call.endpoint = endpoint;
        prepared.error = parse_request(endpoint, body, prepared.call.request);
        if (!prepared.error) prepared.error = check_model_name(prepared.call.request);
        if (!prepared.error && !options_.allow_priority && prepared.call.request.priority != 0) {
          prepared.error = invalid_field("priority", fmt::format("\"priority\" is {}, expected 0: this server serves in order of arrival "
                                                                 "(--scheduling-policy priority lets requests choose)",
                                                                 prepared.call.request.priority));
        }
        if (!prepared.error) prepared.error = build_prompts(model_, endpoint, prepared.call.request, prepared.call.prompts);
        if (!prepared.error) prepared.error = check_against_model(model_, max_model_len_, prepared.call);
        return prepared;
      },
      [this, exchange](Prepared& prepared) {
        if (prepared.error) {
          exchange->respond(error_response(*prepared.error));
        } else {
          start_call(std::move(prepared.call), exchange);
        }
      });
}

void Server::Impl::start_call(PreparedCall prepared, const Exchange& exchange) {
  const uint64_t call_id = next_call_id_++;
  auto call = std::make_shared<GenerationCall>(model_, call_id, std::move(prepared), exchange);
  if (auto error = call->start(mailbox_, random_())) {
    exchange->respond(error_response(*error));
    return;
  }
  calls_.emplace(call_id, call);
  exchange->on_gone([this, call_id] {
    const auto found = calls_.find(call_id);
    if (found == calls_.end()) return;
    found->second->cancel();
    calls_.erase(found);
  });
}

void Server::Impl::deliver() {
  for (OutputMailbox::Item& item : mailbox_->take()) {
    const auto found = calls_.find(item.call_id);
    if (found == calls_.end()) continue;  // its client has gone
    const std::shared_ptr<GenerationCall> call = found->second;
    if (call->on_delta(item.prompt, item.delta)) calls_.erase(item.call_id);
  }
}

// ---- the small endpoints ----

void Server::Impl::tokenize(const Exchange& exchange) {
  on_helper<HttpResponse>(
      exchange,
      [this](std::string_view body) -> HttpResponse {
        ApiRequest request;
        std::vector<BuiltPrompt> prompts;
        std::optional<ApiError> error = parse_request(Endpoint::kTokenize, body, request);
        if (!error) error = check_model_name(request);
        if (!error) error = build_prompts(model_, Endpoint::kTokenize, request, prompts);
        if (error) return error_response(*error);
        const std::vector<int32_t>& tokens = prompts.at(0).tokens;
        JsonWriter json;
        json.begin_object().field("count", static_cast<int64_t>(tokens.size())).field("max_model_len", max_model_len_).key("tokens").begin_array();
        for (const int32_t id : tokens) json.value(id);
        json.end_array().key("token_strs");
        if (request.return_token_strs) {
          json.begin_array();
          for (const int32_t id : tokens) json.value(model_.tokenizer->id_to_token(id));
          json.end_array();
        } else {
          json.null();
        }
        return json_response(json.end_object().take());
      },
      [exchange](HttpResponse& response) { exchange->respond(std::move(response)); });
}

void Server::Impl::detokenize(const Exchange& exchange) {
  on_helper<HttpResponse>(
      exchange,
      [this](std::string_view body) -> HttpResponse {
        ApiRequest request;
        std::optional<ApiError> error = parse_request(Endpoint::kDetokenize, body, request);
        if (!error) error = check_model_name(request);
        const int64_t vocab_size = model_.tokenizer->vocab_size();
        for (const int32_t id : request.tokens) {
          if (error || id < vocab_size) continue;
          error = invalid_field("tokens", fmt::format("\"tokens\" has {}, expected token ids below {}", id, vocab_size));
        }
        if (error) return error_response(*error);
        Result<std::string> text = model_.tokenizer->decode(request.tokens, false);
        if (!text.is_ok()) return error_response(to_api_error(text.status()));
        return json_response(JsonWriter().begin_object().field("prompt", *text).end_object().take());
      },
      [exchange](HttpResponse& response) { exchange->respond(std::move(response)); });
}

std::string Server::Impl::model_json() const {
  JsonWriter json;
  json.begin_object().field("id", model_.name).field("object", "model").field("created", created_).field("owned_by", "millrace").field("root", model_.name);
  return json.key("parent").null().field("max_model_len", max_model_len_).end_object().take();
}

void Server::Impl::models(const Exchange& exchange) {
  const std::string& path = exchange->request().path;
  if (path == "/v1/models") {
    exchange->respond(json_response(JsonWriter().begin_object().field("object", "list").key("data").begin_array().raw(model_json()).end_array().end_object().take()));
    return;
  }
  ApiRequest request;
  request.model = percent_decoded(path.substr(std::string_view("/v1/models/").size()));
  if (auto error = check_model_name(request)) {
    exchange->respond(error_response(*error));
  } else {
    exchange->respond(json_response(model_json()));
  }
}

void Server::Impl::health(const Exchange& exchange) {
  if (draining_) {
    exchange->respond(error_response(http_error(503, "the server is shutting down")));
    return;
  }
  const double seconds = model_.engine->metrics().seconds_since_step;
  if (seconds * 1000 > static_cast<double>(options_.stall_timeout.count())) {
    exchange->respond(error_response(http_error(503, fmt::format("a step has been running for {:.0f} seconds", seconds))));
    return;
  }
  exchange->respond(json_response(R"({"status":"ok"})"));
}

void Server::Impl::metrics(const Exchange& exchange) {
  http_metrics_.num_connections = http_->stats().num_connections;
  http_metrics_.num_connections_total = http_->stats().num_connections_total;
  http_metrics_.num_connections_refused = http_->stats().num_connections_refused;
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  response.body = prometheus_text(model_.engine->metrics(), http_metrics_, model_.name);
  exchange->respond(std::move(response));
}

void Server::Impl::engine_stats(const Exchange& exchange) {
  const EngineMetrics metrics = model_.engine->metrics();
  const auto mean = [](const Histogram& values) { return values.count() == 0 ? 0.0 : values.sum() / static_cast<double>(values.count()); };
  JsonWriter json;
  json.begin_object()
      .field("model", model_.name)
      .field("version", MILLRACE_VERSION)
      .field("max_model_len", max_model_len_)
      .field("uptime_seconds", std::chrono::duration<double>(Clock::now() - started_).count())
      .field("running", metrics.num_running_sequences)
      .field("waiting", metrics.num_waiting_sequences)
      .field("kv_usage", metrics.kv_usage)
      .field("generation_tokens_per_second", metrics.generation_tokens_per_second)
      .field("prompt_tokens_per_second", metrics.prompt_tokens_per_second)
      .field("prompt_tokens", metrics.prompt_tokens)
      .field("generation_tokens", metrics.generation_tokens)
      .field("prefix_cache_queries", metrics.prefix_cache_queries)
      .field("prefix_cache_hits", metrics.prefix_cache_hits)
      .field("num_preemptions", metrics.num_preemptions)
      .field("ttft_seconds_mean", mean(metrics.time_to_first_token))
      .field("itl_seconds_mean", mean(metrics.inter_token_latency));
  json.key("kv_groups").begin_array();
  for (const EngineMetrics::KvGroup& group : metrics.kv_groups) {
    json.begin_object()
        .field("num_blocks", group.num_blocks)
        .field("num_used_blocks", group.num_used_blocks)
        .field("num_cached_blocks", group.num_cached_blocks)
        .field("num_free_blocks", group.num_free_blocks)
        .end_object();
  }
  const SamplingParams& sampling = model_.default_sampling;
  json.end_array()
      .key("default_sampling")
      .begin_object()
      .field("temperature", static_cast<double>(sampling.temperature))
      .field("top_p", static_cast<double>(sampling.top_p))
      .field("top_k", sampling.top_k)
      .field("min_p", static_cast<double>(sampling.min_p))
      .end_object();
  json.key("facts").begin_object();
  for (const auto& [name, value] : model_.facts) json.field(name, value);
  exchange->respond(json_response(json.end_object().end_object().take()));
}

void Server::Impl::asset(const Exchange& exchange) {
  const HttpRequest& request = exchange->request();
  for (const WebAsset& asset : web_assets()) {
    if (asset.path != request.path) continue;
    HttpResponse response;
    response.content_type = asset.content_type;
    response.headers = {{"ETag", asset.etag},
                        {"Cache-Control", "no-cache"},
                        {"Content-Security-Policy", std::string(kPagePolicy)},
                        {"Referrer-Policy", "no-referrer"},
                        {"Cross-Origin-Resource-Policy", "same-origin"}};
    if (request.if_none_match == asset.etag) {
      response.status = 304;
    } else {
      response.body = asset.content;
    }
    exchange->respond(std::move(response));
    return;
  }
}

// ---- the end ----

void Server::Impl::begin_drain() {
  if (draining_) return;
  draining_ = true;
  drain_deadline_ = Clock::now() + options_.drain_timeout;
  drain_when_prepared();
}

// Requests that helpers still read were accepted before the signal: the engine takes them, then drains.
void Server::Impl::drain_when_prepared() {
  if (num_preparing_ > 0 && Clock::now() < drain_deadline_) {
    http_->post_after(std::chrono::milliseconds(5), [this] { drain_when_prepared(); });
    return;
  }
  drain_thread_ = std::thread([this] {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(drain_deadline_ - Clock::now());
    model_.engine->drain(std::max(left, std::chrono::milliseconds(0)));
    http_->post([this] {
      deliver();
      http_->stop(kFlushGrace);
    });
  });
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() = default;

Result<std::unique_ptr<Server>> Server::create(ServedModel model, ServerOptions options) {
  if (model.engine == nullptr || model.tokenizer == nullptr) return Status::invalid_argument("a served model needs an engine and a tokenizer");
  if (options.api_key.empty() && !is_loopback(options.host) && !options.allow_open_without_key) {
    return Status::invalid_argument(
        fmt::format("host {} is reachable from other machines, which needs an API key: in the variable MILLRACE_API_KEY or with --api-key-file; "
                    "--allow-open-without-key serves everybody without one",
                    options.host));
  }
  auto impl = std::make_unique<Impl>(std::move(model), std::move(options));
  MR_RETURN_IF_ERROR(impl->start());
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

uint16_t Server::port() const { return impl_->port(); }
void Server::run() { impl_->run(); }
void Server::stop() { impl_->stop(); }

Status serve(ServedModel model, ServerOptions options, const std::function<void(uint16_t port)>& on_ready) {
  Result<std::unique_ptr<Server>> server = Server::create(std::move(model), std::move(options));
  if (!server.is_ok()) return server.status();
  if (on_ready) on_ready((*server)->port());
  (*server)->run();
  return Status::ok();
}

}  // namespace millrace
