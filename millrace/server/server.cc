#include "millrace/server/server.h"

#include <fmt/format.h>

#include <algorithm>

#include "millrace/server/prompt_builder.h"
#include "millrace/server/request_table.h"
#include "millrace/server/server_impl.h"

namespace millrace {
namespace {

constexpr std::chrono::milliseconds kFlushGrace{2'000};  // for finished answers to reach their clients when the server ends

}  // namespace

// ---- generation ----

std::optional<ApiError> Server::Impl::check_model_name(const ApiRequest& request) const {
  if (request.model.empty() || request.model == model_.name ||
      std::find(model_.aliases.begin(), model_.aliases.end(), request.model) != model_.aliases.end()) {
    return std::nullopt;
  }
  ApiError error =
      http_error(404, fmt::format("the model \"{}\" is not served here, expected \"{}\"", request.model.substr(0, 128), model_.name));
  error.type = "invalid_request_error";
  error.param = "model";
  error.code = "model_not_found";
  return error;
}

void Server::Impl::generate(const Exchange& exchange, Endpoint endpoint) {
  if (auto error = check_kind(exchange, false)) {
    exchange->respond(error_response(*error));
    return;
  }
  struct Prepared {
    std::optional<ApiError> error = http_error(500, "the server ran out of memory on this request");
    PreparedCall call;
  };
  const int32_t client = keys_ ? keys_->client_of(exchange->request().authorization).value_or(0) : 0;
  on_helper<Prepared>(
      exchange,
      [this, endpoint, client](std::string_view body) {
        Prepared prepared;
        prepared.call.endpoint = endpoint;
        prepared.call.client = client;
        prepared.error = parse_request(endpoint, body, prepared.call.request);
        if (!prepared.error) prepared.error = check_model_name(prepared.call.request);
        if (!prepared.error && !options_.allow_priority && prepared.call.request.priority != 0) {
          prepared.error = invalid_field("priority", fmt::format("\"priority\" is {}, expected 0: this server serves in order of arrival "
                                                                 "(--scheduling-policy priority lets requests choose)",
                                                                 prepared.call.request.priority));
        }
        if (!prepared.error) prepared.error = build_prompts(model_, endpoint, prepared.call.request, prepared.call.prompts);
        if (!prepared.error) prepared.error = check_against_model(model_, max_model_len_, prepared.call);
        if (!prepared.error) prepared.error = read_token_words(model_, dry_breakers_, prepared.call);
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
    const auto patience = std::max(left, std::chrono::milliseconds(0));
    model_.encoder != nullptr ? model_.encoder->drain(patience) : model_.engine->drain(patience);
    http_->post([this] {
      deliver();
      http_->stop(kFlushGrace);
    });
  });
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() = default;

Result<std::unique_ptr<Server>> Server::create(ServedModel model, ServerOptions options) {
  if ((model.engine == nullptr) == (model.encoder == nullptr) || model.tokenizer == nullptr) {
    return Status::invalid_argument("a served model needs one engine, of a decoder or of an encoder, and a tokenizer");
  }
  if (options.api_keys.empty() && !is_loopback(options.host) && !options.allow_open_without_key) {
    return Status::invalid_argument(fmt::format(
        "host {} is reachable from other machines, which needs an API key: in the variable MILLRACE_API_KEY or with --api-key-file; "
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
