#include <fmt/format.h>

#include <charconv>

#include "millrace/server/json_writer.h"
#include "millrace/server/prompt_builder.h"
#include "millrace/server/request_table.h"
#include "millrace/server/server_impl.h"

namespace millrace {
namespace {

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

}  // namespace

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
        json.begin_object()
            .field("count", static_cast<int64_t>(tokens.size()))
            .field("max_model_len", max_model_len_)
            .key("tokens")
            .begin_array();
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
  json.begin_object()
      .field("id", model_.name)
      .field("object", "model")
      .field("created", created_)
      .field("owned_by", "millrace")
      .field("root", model_.name);
  return json.key("parent").null().field("max_model_len", max_model_len_).end_object().take();
}

void Server::Impl::models(const Exchange& exchange) {
  const std::string& path = exchange->request().path;
  if (path == "/v1/models") {
    exchange->respond(json_response(
        JsonWriter().begin_object().field("object", "list").key("data").begin_array().raw(model_json()).end_array().end_object().take()));
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
  const double seconds = engine_metrics().seconds_since_step;
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
  response.body = prometheus_text(engine_metrics(), http_metrics_, model_.name);
  exchange->respond(std::move(response));
}

void Server::Impl::engine_stats(const Exchange& exchange) {
  const EngineMetrics metrics = engine_metrics();
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

}  // namespace millrace
