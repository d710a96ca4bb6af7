#include "millrace/cli/null_server.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "millrace/base/json.h"
#include "millrace/base/json_text.h"
#include "millrace/server/http.h"
#include "millrace/server/http_server.h"

namespace millrace::cli {
namespace {

constexpr int64_t kMostTokens = 1 << 20;

int64_t count_words(const json::value* text) {
  if (text == nullptr || !text->is_string()) return 0;
  const auto& words = text->get_string();
  return words.empty() ? 0 : std::count(words.begin(), words.end(), ' ') + 1;
}

class NullHandler final : public HttpHandler {
 public:
  explicit NullHandler(int64_t token_ms) : token_ms_(token_ms) {}
  void set_server(HttpServer* server) { server_ = server; }

  std::optional<HttpResponse> refuse(const HttpRequest&) override { return std::nullopt; }

  void handle(std::shared_ptr<HttpExchange> exchange) override {
    const HttpRequest& request = exchange->request();
    if (request.path == "/v1/models") {
      exchange->respond({.body = R"({"object": "list", "data": [{"id": "null", "object": "model"}]})"});
      return;
    }
    const bool chat = request.path == "/v1/chat/completions";
    const auto body = parse_json(exchange->take_body());
    if ((!chat && request.path != "/v1/completions") || !body.is_ok() || !body->is_object()) {
      exchange->respond({.status = 404, .body = R"({"error": {"message": "the null server completes, and nothing else"}})"});
      return;
    }
    const json::object& fields = body->get_object();
    auto stream = std::make_shared<Stream>();
    stream->exchange = std::move(exchange);
    const json::value* max_tokens = fields.if_contains("max_tokens");
    if (max_tokens != nullptr && max_tokens->is_int64()) stream->num_left = std::clamp<int64_t>(max_tokens->get_int64(), 1, kMostTokens);
    stream->num_tokens = stream->num_left;
    const json::value* text = fields.if_contains("prompt");
    if (const json::value* messages = fields.if_contains("messages"); messages != nullptr && messages->is_array()) {
      for (const json::value& message : messages->get_array()) {
        if (message.is_object()) text = message.get_object().if_contains("content");
      }
    }
    stream->prompt_tokens = count_words(text);
    stream->event =
        chat
            ? R"(data: {"object":"chat.completion.chunk","model":"null","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]})"
            : R"(data: {"object":"text_completion","model":"null","choices":[{"index":0,"text":" word","finish_reason":null}]})";
    stream->event += "\n\n";
    stream->exchange->on_gone([stream] { stream->num_left = -1; });
    stream->exchange->start_stream({.content_type = "text/event-stream"});
    send(stream);
  }

  HttpResponse protocol_error(int status, std::string_view what) override {
    return {.status = status, .body = json_text(json::object{{"error", json::object{{"message", what}}}}), .close = true};
  }
  void on_signal(int) override {}

 private:
  struct Stream {
    std::shared_ptr<HttpExchange> exchange;
    std::string event;
    int64_t prompt_tokens = 0, num_tokens = 16, num_left = 16;  // -1: the client has gone
  };

  // One token, and the next in another turn of the loop: as from an engine, each is sent by itself.
  void send(const std::shared_ptr<Stream>& stream) {
    if (stream->num_left < 0) return;
    if (stream->num_left > 0) {
      --stream->num_left;
      stream->exchange->write(stream->event);
      const auto next = [this, stream] { send(stream); };
      if (token_ms_ > 0) {
        server_->post_after(std::chrono::milliseconds(token_ms_), next);
      } else {
        server_->post(next);
      }
      return;
    }
    stream->exchange->write(fmt::format(
        "data: {{\"choices\":[{{\"index\":0,\"text\":\"\",\"delta\":{{}},\"finish_reason\":\"length\"}}]}}\n\n"
        "data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":{},\"completion_tokens\":{},\"total_tokens\":{}}}}}\n\ndata: [DONE]\n\n",
        stream->prompt_tokens, stream->num_tokens, stream->prompt_tokens + stream->num_tokens));
    stream->exchange->finish();
  }

  const int64_t token_ms_;
  HttpServer* server_ = nullptr;
};

// In the child: serves until it is killed, or its parent has ended.
[[noreturn]] void serve(int64_t token_ms, int port_pipe, int parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);
  NullHandler handler(token_ms);
  auto server = HttpServer::listen("127.0.0.1", 0, handler, HttpLimits{});
  const uint16_t port = server.is_ok() ? (*server)->port() : 0;
  if (write(port_pipe, &port, sizeof port) != sizeof port || port == 0) _exit(1);
  close(port_pipe);
  handler.set_server(server->get());
  (*server)->run(false);
  _exit(0);
}

}  // namespace

Result<NullServer> NullServer::start(int64_t token_ms) {
  int ends[2];
  if (pipe(ends) != 0) return Status::unavailable(fmt::format("no pipe: {}", std::strerror(errno)));
  const int parent = getpid(), pid = fork();
  if (pid == 0) {
    close(ends[0]);
    serve(token_ms, ends[1], parent);
  }
  close(ends[1]);
  uint16_t port = 0;
  const bool has_port = pid > 0 && read(ends[0], &port, sizeof port) == sizeof port && port != 0;
  close(ends[0]);
  NullServer server(pid, port);
  if (!has_port) return Status::unavailable("the null server did not start");
  return server;
}

NullServer::NullServer(NullServer&& other) noexcept : pid_(std::exchange(other.pid_, 0)), port_(other.port_) {}

NullServer::~NullServer() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

ServerUrl NullServer::url() const { return {.host = "127.0.0.1", .port = port_, .base_path = {}}; }

}  // namespace millrace::cli
