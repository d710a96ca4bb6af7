#include "millrace/server/encode_call.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "millrace/server/json_writer.h"

namespace millrace {
namespace {

// A text's place in the request, for errors.
std::string field_name(const EncodeCall& call, bool second, std::size_t index) {
  switch (call.endpoint) {
    case Endpoint::kScore: return fmt::format("{}[{}]", second ? "text_2" : "text_1", index);
    case Endpoint::kRerank: return second ? fmt::format("documents[{}]", index) : std::string("query");
    default: return fmt::format("input[{}]", index);
  }
}

class InputBuilder {
 public:
  InputBuilder(const ServedModel& model, EncodeCall& call) : model_(model), call_(call), max_tokens_(model.encoder->max_text_tokens()) {
    if (call.request.truncate_prompt_tokens)
      limit_ = *call.request.truncate_prompt_tokens == -1 ? max_tokens_ : *call.request.truncate_prompt_tokens;
  }

  std::optional<ApiError> add_text(std::string_view text, const std::string& field) {
    if (call_.request.add_special_tokens.value_or(true)) return add(model_.tokenizer->encode_input(text, {}, limit_), field);
    Result<std::vector<int32_t>> ids = model_.tokenizer->encode(text, {.add_special_tokens = false});
    if (!ids.is_ok()) return invalid_field(field, fmt::format("\"{}\": {}", field, ids.status().message()));
    return add_ids(std::move(ids).value(), field);
  }

  std::optional<ApiError> add_pair(std::string_view first, std::string_view second, const std::string& field) {
    return add(model_.tokenizer->encode_input(first, second, limit_), field);
  }

  std::optional<ApiError> add_ids(std::vector<int32_t> ids, const std::string& field) {
    if (limit_ && static_cast<int64_t>(ids.size()) > *limit_) ids.resize(static_cast<std::size_t>(*limit_));
    return push({std::move(ids), {}}, field);
  }

 private:
  std::optional<ApiError> add(Result<EncodedInput> encoded, const std::string& field) {
    if (!encoded.is_ok()) return invalid_field(field, fmt::format("\"{}\": {}", field, encoded.status().message()));
    return push({std::move(encoded->ids), std::move(encoded->types)}, field);
  }

  std::optional<ApiError> push(EncoderInput input, const std::string& field) {
    if (input.tokens.empty()) return invalid_field(field, fmt::format("\"{}\" has no tokens, expected at least one", field));
    if (static_cast<int64_t>(input.tokens.size()) > max_tokens_) {
      ApiError error = invalid_field(
          field, fmt::format("\"{}\" has {} tokens, the model reads at most {} (\"truncate_prompt_tokens\": -1 cuts longer texts)", field,
                             input.tokens.size(), max_tokens_));
      error.code = "context_length_exceeded";
      return error;
    }
    // Types that the network does not know are all 0, as where the tokenizer's template is of another model.
    if (std::all_of(input.token_types.begin(), input.token_types.end(), [](int32_t type) { return type == 0; })) input.token_types.clear();
    call_.inputs.push_back(std::move(input));
    return std::nullopt;
  }

  const ServedModel& model_;
  EncodeCall& call_;
  const int64_t max_tokens_;
  std::optional<int64_t> limit_;
};

std::optional<ApiError> check_model(const ServedModel& model, const EncodeCall& call) {
  const auto unsupported = [&](std::string_view expected) {
    ApiError error = http_error(400, fmt::format("\"{}\" is {}, expected {}", model.name, model.kind, expected));
    error.param = "model";
    error.code = "unsupported_model";
    return error;
  };
  if (call.endpoint == Endpoint::kEmbeddings && model.classes)
    return unsupported("an encoder that makes embeddings; this one answers /classify, /v1/score and /v1/rerank");
  if (call.endpoint == Endpoint::kClassify && !model.classes)
    return unsupported("an encoder that scores texts for classes; this one answers /v1/embeddings, /v1/score and /v1/rerank");
  if ((call.endpoint == Endpoint::kScore || call.endpoint == Endpoint::kRerank) && model.classes && model.classes->labels.size() != 1) {
    return unsupported("one class (a reranker), or embeddings; this one answers /classify");
  }
  if (call.request.dimensions && *call.request.dimensions > model.encoder->output_size()) {
    return invalid_field("dimensions", fmt::format("\"dimensions\" is {}, expected at most the {} that the model's embeddings have",
                                                   *call.request.dimensions, model.encoder->output_size()));
  }
  return std::nullopt;
}

std::string base64_of(const std::vector<float>& numbers) {
  // Little-endian f32, as OpenAI's clients read them; all machines that this runs on are.
  const auto bytes = static_cast<int>(numbers.size() * sizeof(float));
  std::string text(static_cast<std::size_t>((bytes + 2) / 3 * 4 + 1), '\0');
  const int size =
      EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()), reinterpret_cast<const unsigned char*>(numbers.data()), bytes);
  text.resize(static_cast<std::size_t>(size));
  return text;
}

// The shortest text that reads back as the same float.
void write_float(JsonWriter& json, float x) { json.raw(fmt::format("{}", x)); }

void write_floats(JsonWriter& json, const std::vector<float>& numbers) {
  std::string text = "[";
  for (const float x : numbers) fmt::format_to(std::back_inserter(text), "{}{}", text.size() > 1 ? "," : "", x);
  text += ']';
  json.raw(text);
}

void write_usage(JsonWriter& json, int64_t num_tokens) {
  json.key("usage")
      .begin_object()
      .field("prompt_tokens", num_tokens)
      .field("total_tokens", num_tokens)
      .field("completion_tokens", int64_t{0})
      .key("prompt_tokens_details")
      .null()
      .end_object();
}

JsonWriter& begin_list(JsonWriter& json, const ServedModel& model, const EncodeCall& call) {
  return json.begin_object()
      .field("id", call.id)
      .field("object", "list")
      .field("created", call.created)
      .field("model", model.name)
      .key("data")
      .begin_array();
}

std::string embeddings_answer(const ServedModel& model, const EncodeCall& call, EncodeResult& result) {
  JsonWriter json;
  begin_list(json, model, call);
  for (std::size_t i = 0; i < result.outputs.size(); ++i) {
    std::vector<float>& embedding = result.outputs[i];
    if (call.request.dimensions && static_cast<std::size_t>(*call.request.dimensions) < embedding.size()) {
      shorten_embedding(embedding, static_cast<std::size_t>(*call.request.dimensions));
    }
    json.begin_object().field("index", static_cast<int64_t>(i)).field("object", "embedding").key("embedding");
    if (call.request.base64) {
      json.value(base64_of(embedding));
    } else {
      write_floats(json, embedding);
    }
    json.end_object();
  }
  json.end_array();
  write_usage(json, result.num_tokens);
  return json.end_object().take();
}

std::string classify_answer(const ServedModel& model, const EncodeCall& call, EncodeResult& result) {
  JsonWriter json;
  begin_list(json, model, call);
  for (std::size_t i = 0; i < result.outputs.size(); ++i) {
    std::vector<float>& scores = result.outputs[i];
    if (call.request.use_activation.value_or(true)) model.classes->apply(scores);
    const auto best = static_cast<std::size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
    json.begin_object().field("index", static_cast<int64_t>(i)).field("label", model.classes->labels[best]).key("probs");
    write_floats(json, scores);
    json.field("num_classes", static_cast<int64_t>(scores.size())).end_object();
  }
  json.end_array();
  write_usage(json, result.num_tokens);
  return json.end_object().take();
}

std::vector<float> scores_of(const ServedModel& model, const EncodeCall& call, EncodeResult& result) {
  std::vector<float> scores;
  if (!model.classes) {
    for (const auto& [a, b] : call.pairs) scores.push_back(cosine(result.outputs[a], result.outputs[b]));
    return scores;
  }
  for (std::vector<float>& output : result.outputs) {
    if (call.request.use_activation.value_or(true)) model.classes->apply(output);
    scores.push_back(output[0]);
  }
  return scores;
}

std::string score_answer(const ServedModel& model, const EncodeCall& call, EncodeResult& result) {
  const std::vector<float> scores = scores_of(model, call, result);
  JsonWriter json;
  begin_list(json, model, call);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    json.begin_object().field("index", static_cast<int64_t>(i)).field("object", "score").key("score");
    write_float(json, scores[i]);
    json.end_object();
  }
  json.end_array();
  write_usage(json, result.num_tokens);
  return json.end_object().take();
}

std::string rerank_answer(const ServedModel& model, const EncodeCall& call, EncodeResult& result) {
  const std::vector<float> scores = scores_of(model, call, result);
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  // 0 is all of them, as vLLM takes it.
  if (call.request.top_n.value_or(0) > 0) order.resize(std::min(order.size(), static_cast<std::size_t>(*call.request.top_n)));
  JsonWriter json;
  json.begin_object().field("id", call.id).field("model", model.name);
  json.key("usage").begin_object().field("prompt_tokens", result.num_tokens).field("total_tokens", result.num_tokens).end_object();
  json.key("results").begin_array();
  for (const std::size_t i : order) {
    json.begin_object().field("index", static_cast<int64_t>(i));
    if (call.request.return_documents) json.key("document").begin_object().field("text", call.request.texts_2[i]).end_object();
    json.key("relevance_score");
    write_float(json, scores[i]);
    json.end_object();
  }
  return json.end_array().end_object().take();
}

}  // namespace

std::optional<ApiError> build_inputs(const ServedModel& model, EncodeCall& call) {
  if (auto error = check_model(model, call)) return error;
  InputBuilder builder(model, call);
  ApiRequest& request = call.request;
  if (call.endpoint == Endpoint::kEmbeddings || call.endpoint == Endpoint::kClassify) {
    for (std::size_t i = 0; i < request.prompts.size(); ++i) {
      const std::string field = field_name(call, false, i);
      auto* ids = std::get_if<std::vector<int32_t>>(&request.prompts[i]);
      auto error =
          ids != nullptr ? builder.add_ids(std::move(*ids), field) : builder.add_text(std::get<std::string>(request.prompts[i]), field);
      if (error) return error;
    }
    return std::nullopt;
  }
  const std::vector<std::string>&left = request.texts_1, &right = request.texts_2;
  if (model.classes) {
    for (std::size_t i = 0; i < right.size(); ++i) {
      if (auto error = builder.add_pair(left[left.size() == 1 ? 0 : i], right[i], field_name(call, true, i))) return error;
    }
    return std::nullopt;
  }
  for (std::size_t i = 0; i < left.size(); ++i) {
    if (auto error = builder.add_text(left[i], field_name(call, false, i))) return error;
  }
  for (std::size_t i = 0; i < right.size(); ++i) {
    if (auto error = builder.add_text(right[i], field_name(call, true, i))) return error;
    call.pairs.emplace_back(left.size() == 1 ? 0 : i, left.size() + i);
  }
  return std::nullopt;
}

std::string encode_answer(const ServedModel& model, const EncodeCall& call, EncodeResult& result) {
  switch (call.endpoint) {
    case Endpoint::kClassify: return classify_answer(model, call, result);
    case Endpoint::kScore: return score_answer(model, call, result);
    case Endpoint::kRerank: return rerank_answer(model, call, result);
    default: return embeddings_answer(model, call, result);
  }
}

}  // namespace millrace
