#include <fmt/format.h>

#include <algorithm>

#include "millrace/server/server_impl.h"
#include "millrace/server/web_assets.h"

namespace millrace {
namespace {

// What browsers are told about the page: nothing from elsewhere, nothing inline, no framing.
constexpr std::string_view kPagePolicy =
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'";

bool is_json(std::string_view content_type) {
  std::string type(content_type.substr(0, content_type.find(';')));
  while (!type.empty() && type.back() == ' ') type.pop_back();
  std::transform(type.begin(), type.end(), type.begin(),
                 [](unsigned char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c); });
  return type == "application/json";
}

}  // namespace

const std::array<Server::Impl::Route, 16> Server::Impl::kRoutes = {{
    {"POST", "/v1/chat/completions", &Impl::chat},
    {"POST", "/v1/completions", &Impl::completions},
    {"POST", "/v1/embeddings", &Impl::embeddings},
    {"POST", "/classify", &Impl::classify},
    {"POST", "/v1/score", &Impl::score},
    {"POST", "/score", &Impl::score},
    {"POST", "/v1/rerank", &Impl::rerank},
    {"POST", "/v2/rerank", &Impl::rerank},
    {"POST", "/rerank", &Impl::rerank},
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
  CountingExchange(Impl& server, std::string_view route, Exchange exchange)
      : server_(server), route_(route), exchange_(std::move(exchange)) {}

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

const Server::Impl::Route* Server::Impl::find_route(std::string_view path, std::string_view method, std::string& allowed) {
  for (const WebAsset& asset : web_assets()) {
    if (asset.path == path) path = "/";
  }
  constexpr std::string_view kOneModel = "/v1/models/";
  if (path.starts_with(kOneModel) && path.size() > kOneModel.size()) path = "/v1/models";
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
    return refusal(403,
                   fmt::format("the Host field is \"{}\"; without an API key this server answers to localhost and loopback addresses only, "
                               "so that no page elsewhere can reach it under a name of its own (set MILLRACE_API_KEY to use other names)",
                               head.host->substr(0, 128)));
  }
  if (keys_ && (route == nullptr || !route->open) && !keys_->client_of(head.authorization)) {
    // A browser that opens the page is asked for the key (as password); programs send it as a bearer token.
    const bool page = route != nullptr && route->path == "/";
    return refusal(401, "the request needs this server's API key: \"Authorization: Bearer <key>\"", "WWW-Authenticate",
                   page ? "Basic realm=\"millrace\", charset=\"UTF-8\"" : "Bearer realm=\"millrace\"");
  }
  if (route == nullptr && allowed.empty()) return refusal(404, fmt::format("there is no {} here", head.path.substr(0, 128)));
  if (route == nullptr)
    return refusal(405, fmt::format("{} answers to {}, not to {}", head.path.substr(0, 128), allowed, head.method.substr(0, 32)), "Allow",
                   allowed);
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

}  // namespace millrace
