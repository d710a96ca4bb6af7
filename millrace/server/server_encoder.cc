#include <fmt/format.h>

#include "millrace/server/request_table.h"
#include "millrace/server/server_impl.h"

namespace millrace {
namespace {

std::string_view id_prefix(Endpoint endpoint) {
  switch (endpoint) {
    case Endpoint::kClassify: return "classify";
    case Endpoint::kScore: return "score";
    case Endpoint::kRerank: return "rerank";
    default: return "embd";
  }
}

}  // namespace

// A model writes text or reads it into numbers; asked for the other, it says what it is.
std::optional<ApiError> Server::Impl::check_kind(const Exchange& exchange, bool encoder) const {
  if (encoder == (model_.encoder != nullptr)) return std::nullopt;
  ApiError error =
      http_error(400, fmt::format("\"{}\" is {}: {} does not answer for it", model_.name, model_.kind, exchange->request().path));
  error.param = "model";
  error.code = "unsupported_model";
  return error;
}

void Server::Impl::encode(const Exchange& exchange, Endpoint endpoint) {
  if (auto error = check_kind(exchange, true)) {
    exchange->respond(error_response(*error));
    return;
  }
  struct Prepared {
    std::optional<ApiError> error = http_error(500, "the server ran out of memory on this request");
    EncodeCall call;
  };
  on_helper<Prepared>(
      exchange,
      [this, endpoint](std::string_view body) {
        Prepared prepared;
        prepared.call.endpoint = endpoint;
        prepared.error = parse_request(endpoint, body, prepared.call.request);
        if (!prepared.error) prepared.error = check_model_name(prepared.call.request);
        if (!prepared.error) prepared.error = build_inputs(model_, prepared.call);
        return prepared;
      },
      [this, exchange](Prepared& prepared) {
        if (prepared.error) {
          exchange->respond(error_response(*prepared.error));
        } else {
          start_encode(std::move(prepared.call), exchange);
        }
      });
}

void Server::Impl::start_encode(EncodeCall prepared, const Exchange& exchange) {
  const uint64_t call_id = next_call_id_++;
  prepared.id = fmt::format("{}-{:016x}", id_prefix(prepared.endpoint), random_());
  prepared.created = static_cast<int64_t>(std::time(nullptr));
  std::vector<EncoderInput> inputs = std::move(prepared.inputs);
  // The callback runs, and is destroyed, on the engine's thread, and may outlive the server: it holds the call's number, not the exchange.
  const Result<RequestId> added = model_.encoder->add(std::move(inputs), [this, waker = waker_, call_id](EncodeResult& result) {
    auto taken = std::make_shared<EncodeResult>(std::move(result));
    const std::lock_guard lock(waker->mutex);
    if (waker->http != nullptr) waker->http->post([this, call_id, taken] { finish_encode(call_id, taken); });
  });
  if (!added.is_ok()) {
    exchange->respond(error_response(to_api_error(added.status())));
    return;
  }
  encodes_.emplace(call_id, PendingEncode{exchange, std::make_shared<const EncodeCall>(std::move(prepared))});
  exchange->on_gone([this, call_id, id = *added] {
    model_.encoder->cancel(id);
    encodes_.erase(call_id);
  });
}

void Server::Impl::answer_encode(uint64_t call_id, HttpResponse response) {
  const auto found = encodes_.find(call_id);
  if (found == encodes_.end()) return;  // its client has gone
  const Exchange exchange = found->second.exchange;
  encodes_.erase(found);
  exchange->respond(std::move(response));
}

// A long answer is written on a helper thread: a million numbers take longer than others' packets may wait.
void Server::Impl::finish_encode(uint64_t call_id, const std::shared_ptr<EncodeResult>& result) {
  const auto found = encodes_.find(call_id);
  if (found == encodes_.end()) return;
  if (!result->error.is_ok()) return answer_encode(call_id, error_response(to_api_error(result->error)));
  constexpr int64_t kNumbersAtOnce = 1 << 14;
  constexpr int64_t kBytesPerNumber = 12;
  const auto call = found->second.call;
  const auto count = static_cast<int64_t>(result->outputs.size()) * model_.encoder->output_size();
  if (count > kNumbersAtOnce && !draining_) {
    const bool submitted = helpers_->submit(
        [this, call_id, call, result] {
          auto body = std::make_shared<std::optional<std::string>>();
          try {
            body->emplace(encode_answer(model_, *call, *result));
          } catch (const std::exception&) {
            // Out of memory: answered below.
          }
          http_->post([this, call_id, body] {
            --num_preparing_;
            answer_encode(call_id, *body ? json_response(std::move(**body))
                                         : error_response(http_error(500, "the server ran out of memory on this request")));
          });
        },
        count * kBytesPerNumber);
    if (submitted) {
      ++num_preparing_;  // a drain waits for it
      return;
    }
  }
  answer_encode(call_id, json_response(encode_answer(model_, *call, *result)));
}

}  // namespace millrace
