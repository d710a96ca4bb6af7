#include "millrace/server/request_table.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace millrace {
namespace {

using testing::HasSubstr;

constexpr Endpoint kEndpoints[] = {Endpoint::kChat,       Endpoint::kCompletions, Endpoint::kTokenize, Endpoint::kDetokenize,
                                   Endpoint::kEmbeddings, Endpoint::kClassify,    Endpoint::kScore,    Endpoint::kRerank};

// A request to the endpoint that is right, with `field` set to the JSON text `value` besides.
std::string body_with(Endpoint endpoint, std::string_view field, std::string_view value) {
  std::string extra = field.empty() ? "" : fmt::format(",\"{}\":{}", field, value);
  // What a field needs beside it to make sense.
  if (field == "top_logprobs") extra += ",\"logprobs\":true";
  if (field == "max_tokens" && endpoint == Endpoint::kCompletions) extra += ",\"echo\":true";
  if (field == "length_penalty" || field == "early_stopping") extra += ",\"use_beam_search\":true";
  if (field == "min_tokens") extra += ",\"max_tokens\":2147483647";
  if (field == "stream_options") extra += ",\"stream\":true";
  if (field == "continue_final_message") return R"({"messages":[{"role":"assistant","content":"a"}])" + extra + "}";
  switch (endpoint) {
    case Endpoint::kChat: return R"({"messages":[{"role":"user","content":"a"}])" + extra + "}";
    case Endpoint::kDetokenize: return R"({"tokens":[1])" + extra + "}";
    case Endpoint::kEmbeddings:
    case Endpoint::kClassify: return R"({"input":"a")" + extra + "}";
    case Endpoint::kScore: return R"({"text_1":"a","text_2":["b"])" + extra + "}";
    case Endpoint::kRerank: return R"({"query":"a","documents":["b"])" + extra + "}";
    default: return R"({"prompt":"a")" + extra + "}";
  }
}

std::optional<ApiError> parse(Endpoint endpoint, std::string_view body) {
  ApiRequest request;
  return parse_request(endpoint, body, request);
}

// For each field of the table that has bounds: its endpoint, the field.
template <class Visit>
void for_each_field(const Visit& visit) {
  for (const Endpoint endpoint : kEndpoints) {
    for (const RequestField& field : request_fields()) {
      if ((field.endpoints & static_cast<unsigned>(endpoint)) == 0) continue;
      SCOPED_TRACE(testing::Message() << field.name << " of endpoint " << static_cast<unsigned>(endpoint));
      visit(endpoint, field);
    }
  }
}

template <class T>
bool holds(const RequestField& field) {
  return std::holds_alternative<T>(field.target);
}

bool is_integer(const RequestField& field) {
  return holds<int64_t ApiRequest::*>(field) || holds<std::optional<int64_t> ApiRequest::*>(field);
}
bool is_number(const RequestField& field) { return holds<std::optional<double> ApiRequest::*>(field); }
bool is_boolean(const RequestField& field) { return holds<bool ApiRequest::*>(field) || holds<std::optional<bool> ApiRequest::*>(field); }

// What a request for embeddings, classes, scores or a ranking is about: required, and one text or many.
bool is_text(Endpoint endpoint, const RequestField& field) {
  switch (endpoint) {
    case Endpoint::kEmbeddings:
    case Endpoint::kClassify: return field.name == "input";
    case Endpoint::kScore:
      return field.name == "text_1" || field.name == "text_2" || field.name == "queries" || field.name == "documents" ||
             field.name == "data_1" || field.name == "data_2";
    case Endpoint::kRerank: return field.name == "query" || field.name == "documents";
    default: return false;
  }
}

void expect_refused(Endpoint endpoint, const RequestField& field, std::string_view value) {
  const auto error = parse(endpoint, body_with(endpoint, field.name, value));
  ASSERT_TRUE(error) << field.name << " = " << value;
  EXPECT_EQ(error->status, 400);
  ASSERT_TRUE(error->param) << error->message;
  EXPECT_THAT(*error->param, HasSubstr(std::string(field.name))) << value;
  EXPECT_THAT(error->message, HasSubstr(std::string(field.name)));
}

void expect_accepted(Endpoint endpoint, const RequestField& field, std::string_view value) {
  const auto error = parse(endpoint, body_with(endpoint, field.name, value));
  EXPECT_FALSE(error) << field.name << " = " << value << ": " << error->message;
}

TEST(RequestTable, TextsOfScoresComeInEveryForm) {
  const auto texts = [](Endpoint endpoint, std::string_view body) {
    ApiRequest request;
    const auto error = parse_request(endpoint, body, request);
    EXPECT_FALSE(error) << body << ": " << error->message;
    return std::pair(request.texts_1, request.texts_2);
  };
  const std::vector<std::string> a = {"a"}, b = {"b"}, ab = {"a", "b"};
  EXPECT_EQ(texts(Endpoint::kScore, R"({"text_1": "a", "text_2": "b"})"), std::pair(a, b));
  EXPECT_EQ(texts(Endpoint::kScore, R"({"queries": "a", "documents": ["a", "b"]})"), std::pair(a, ab));
  EXPECT_EQ(texts(Endpoint::kScore, R"({"data_1": ["a", "b"], "data_2": ["a", {"text": "b"}]})"), std::pair(ab, ab));
  EXPECT_EQ(texts(Endpoint::kRerank, R"({"query": "a", "documents": [{"text": "a"}, "b"]})"), std::pair(a, ab));
  for (const char* body :
       {R"({"text_1": "a"})", R"({"text_2": "a"})", R"({"text_1": [], "text_2": "a"})", R"({"text_1": ["a", "b"], "text_2": "a"})",
        R"({"text_1": 1, "text_2": "a"})", R"({"text_1": "a", "queries": "a", "text_2": "a"})",
        R"({"text_1": "a", "text_2": [{"txt": "a"}]})", R"({"text_1": "a", "text_2": [["a"]]})"}) {
    EXPECT_TRUE(parse(Endpoint::kScore, body)) << body;
  }
}

TEST(RequestTable, AcceptsABareRequestToEveryEndpoint) {
  for (const Endpoint endpoint : kEndpoints) EXPECT_FALSE(parse(endpoint, body_with(endpoint, "", "")));
}

TEST(RequestTable, NullStandsForAbsent) {
  for_each_field([](Endpoint endpoint, const RequestField& field) {
    if (field.name == "messages" || field.name == "prompt" || field.name == "tokens" || is_text(endpoint, field)) return;
    expect_accepted(endpoint, field, "null");
  });
}

TEST(RequestTable, BoundsOfIntegersAreExact) {
  for_each_field([](Endpoint endpoint, const RequestField& field) {
    if (!is_integer(field)) return;
    ASSERT_LT(field.minimum, field.maximum) << "every integer has a range";
    if (std::abs(field.minimum) < 1e15) {
      expect_accepted(endpoint, field, fmt::format("{}", static_cast<int64_t>(field.minimum)));
      expect_refused(endpoint, field, fmt::format("{}", static_cast<int64_t>(field.minimum) - 1));
    }
    if (std::abs(field.maximum) < 1e15) {
      expect_accepted(endpoint, field, fmt::format("{}", static_cast<int64_t>(field.maximum)));
      expect_refused(endpoint, field, fmt::format("{}", static_cast<int64_t>(field.maximum) + 1));
    }
    expect_accepted(endpoint, field, fmt::format("{}.0", static_cast<int64_t>(std::max(field.minimum, 1.0))));
  });
}

TEST(RequestTable, BoundsOfNumbersAreExact) {
  for_each_field([](Endpoint endpoint, const RequestField& field) {
    if (!is_number(field)) return;
    ASSERT_LT(field.minimum, field.maximum) << "every number has a range";
    if (field.above_minimum) {
      expect_refused(endpoint, field, fmt::format("{}", field.minimum));
      expect_accepted(endpoint, field, fmt::format("{}", field.minimum + 1e-6));
    } else {
      expect_accepted(endpoint, field, fmt::format("{}", field.minimum));
    }
    expect_refused(endpoint, field, fmt::format("{}", field.minimum - 0.001));
    expect_accepted(endpoint, field, fmt::format("{}", field.maximum));
    expect_refused(endpoint, field, fmt::format("{}", field.maximum + 0.001));
  });
}

TEST(RequestTable, WrongTypesAreRefusedWithTheField) {
  for_each_field([](Endpoint endpoint, const RequestField& field) {
    if (holds<FieldIgnored>(field) || holds<FieldUnsupported>(field)) return;
    const bool takes_string =
        holds<std::string ApiRequest::*>(field) || field.name == "stop" || field.name == "prompt" || field.name == "reasoning_effort";
    const bool takes_list = field.name == "tools" || field.name == "documents" || field.name == "stop" || field.name == "stop_token_ids" ||
                            field.name == "bad_words" || field.name == "dry_sequence_breakers";
    const bool takes_object = field.name == "logit_bias" || field.name == "chat_template_kwargs" || field.name == "stream_options";
    if (field.name == "messages" || field.name == "prompt" || field.name == "tokens") return;  // below
    if (is_text(endpoint, field)) return;                                                      // above
    if (!takes_string) expect_refused(endpoint, field, "\"text\"");
    if (!takes_list) expect_refused(endpoint, field, "[]");
    if (!takes_object) expect_refused(endpoint, field, "{}");
    if (!is_boolean(field) && field.name != "early_stopping") expect_refused(endpoint, field, "true");
    if (!is_integer(field) && !is_number(field)) expect_refused(endpoint, field, "1");
    if (is_integer(field)) {
      for (const char* value : {"0.5", "1e300", "99999999999999999999", "-99999999999999999999"}) expect_refused(endpoint, field, value);
    }
  });
}

TEST(RequestTable, IgnoredFieldsTakeAnything) {
  for_each_field([](Endpoint endpoint, const RequestField& field) {
    if (!holds<FieldIgnored>(field)) return;
    for (const char* value : {"1", "\"x\"", "{}", "[]", "false"}) expect_accepted(endpoint, field, value);
  });
}

TEST(RequestTable, UnsupportedFieldsTakeTheirNeutralValueOnly) {
  for_each_field([](Endpoint endpoint, const RequestField& field) {
    const auto* unsupported = std::get_if<FieldUnsupported>(&field.target);
    if (unsupported == nullptr) return;
    expect_refused(endpoint, field, "12345");
    if (!unsupported->neutral.empty()) expect_accepted(endpoint, field, unsupported->neutral);
  });
}

TEST(RequestTable, NoFieldIsListedTwiceForAnEndpoint) {
  std::set<std::pair<unsigned, std::string_view>> seen;
  for_each_field(
      [&](Endpoint endpoint, const RequestField& field) { EXPECT_TRUE(seen.emplace(static_cast<unsigned>(endpoint), field.name).second); });
}

TEST(RequestTable, UnknownFieldsAreRefusedByName) {
  for (const Endpoint endpoint : kEndpoints) {
    const auto error = parse(endpoint, body_with(endpoint, "temprature", "1"));
    ASSERT_TRUE(error);
    EXPECT_EQ(error->param, "temprature");
    EXPECT_THAT(error->message, HasSubstr("unrecognized field"));
  }
}

TEST(RequestTable, BodiesThatAreNoJsonObjectAreRefused) {
  for (const std::string& body : {std::string(""), std::string("{"), std::string("[]"), std::string("\"x\""), std::string("null"),
                                  std::string("{}x"), std::string("{\"prompt\":\"\xff\"}"), std::string(R"({"prompt":"\ud800"})"),
                                  std::string(100, '['), "{\"metadata\":" + std::string(70, '[') + std::string(70, ']') + "}"}) {
    const auto error = parse(Endpoint::kCompletions, body);
    ASSERT_TRUE(error) << body;
    EXPECT_EQ(error->status, 400) << body;
  }
}

TEST(RequestTable, ReadsEveryFormOfPrompt) {
  const auto read = [](std::string_view prompt) {
    ApiRequest request;
    const auto error = parse_request(Endpoint::kCompletions, fmt::format("{{\"prompt\":{}}}", prompt), request);
    EXPECT_FALSE(error) << error->message;
    return request.prompts;
  };
  EXPECT_EQ(read("\"a\""), std::vector<Prompt>{"a"});
  EXPECT_EQ(read("[\"a\",\"b\"]"), (std::vector<Prompt>{"a", "b"}));
  EXPECT_EQ(read("[1,2]"), (std::vector<Prompt>{std::vector<int32_t>{1, 2}}));
  EXPECT_EQ(read("[[1],[2,3]]"), (std::vector<Prompt>{std::vector<int32_t>{1}, std::vector<int32_t>{2, 3}}));
  for (const char* wrong : {"[]", "[[]]", "{}", "1", "[\"a\",1]", "[1,\"a\"]", "[[1],\"a\"]", "[-1]", "[2147483648]", "[1.5]", "[null]"}) {
    const auto error = parse(Endpoint::kCompletions, fmt::format("{{\"prompt\":{}}}", wrong));
    ASSERT_TRUE(error) << wrong;
    EXPECT_THAT(error->message, HasSubstr("prompt"));
  }
}

TEST(RequestTable, ReadsStopAndBiasWithinTheirLimits) {
  ApiRequest request;
  ASSERT_FALSE(parse_request(Endpoint::kChat,
                             R"({"messages":[{"role":"user","content":"a"}],"stop":["x","yy"],"logit_bias":{"5":-100,"7":1.5}})", request));
  EXPECT_EQ(request.stop, (std::vector<std::string>{"x", "yy"}));
  EXPECT_EQ(request.logit_bias, (std::vector<std::pair<int32_t, float>>{{5, -100.0f}, {7, 1.5f}}));
  std::string many = "[";
  for (int i = 0; i < 17; ++i) many += i == 0 ? "\"x\"" : ",\"x\"";
  const std::pair<const char*, std::string> wrong[] = {{"stop", many + "]"},
                                                       {"stop", "\"\""},
                                                       {"stop", "[1]"},
                                                       {"stop", "\"" + std::string(257, 'x') + "\""},
                                                       {"logit_bias", R"({"x":1})"},
                                                       {"logit_bias", R"({"-1":1})"},
                                                       {"logit_bias", R"({"1":101})"},
                                                       {"logit_bias", R"({"1":"1"})"},
                                                       {"stop_token_ids", "[-1]"},
                                                       {"stop_token_ids", "[\"a\"]"},
                                                       {"allowed_token_ids", "[]"},
                                                       {"allowed_token_ids", "[-1]"},
                                                       {"bad_words", "[\"\"]"},
                                                       {"bad_words", "[1]"},
                                                       {"bad_words", "[\"" + std::string(257, 'x') + "\"]"},
                                                       {"dry_sequence_breakers", "[\"\"]"},
                                                       {"mirostat", "1"},
                                                       {"mirostat", "3"}};
  for (const auto& [field, value] : wrong) {
    const auto error = parse(Endpoint::kChat, body_with(Endpoint::kChat, field, value));
    ASSERT_TRUE(error) << field << value;
    EXPECT_THAT(*error->param, HasSubstr(field));
  }
}

TEST(RequestTable, ReadsListsOfWordsAndIds) {
  ApiRequest request;
  ASSERT_FALSE(parse_request(
      Endpoint::kCompletions,
      R"({"prompt":"a","bad_words":["x","y z"],"allowed_token_ids":[3,1],"dry_sequence_breakers":["\n"],"mirostat":2})", request));
  EXPECT_EQ(request.bad_words, (std::vector<std::string>{"x", "y z"}));
  EXPECT_EQ(request.allowed_token_ids, (std::vector<int32_t>{3, 1}));
  EXPECT_EQ(request.dry_sequence_breakers, std::vector<std::string>{"\n"});
  EXPECT_EQ(request.mirostat, 2);
  ApiRequest bare;
  ASSERT_FALSE(parse_request(Endpoint::kCompletions, R"({"prompt":"a"})", bare));
  EXPECT_FALSE(bare.dry_sequence_breakers || bare.mirostat || bare.typical_p);
}

TEST(RequestTable, MessagesBecomeWhatTemplatesRead) {
  ApiRequest request;
  const auto error = parse_request(Endpoint::kChat,
                                   R"({"messages":[
      {"role":"system","content":"s","name":null},
      {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
      {"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}}]},
      {"role":"tool","content":"r","tool_call_id":"1"}]})",
                                   request);
  ASSERT_FALSE(error) << error->message;
  EXPECT_EQ(json::serialize(request.messages),
            R"([{"role":"system","content":"s"},{"role":"user","content":"a\nb"},)"
            R"({"role":"assistant","content":"","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":{"x":1}}}]},)"
            R"({"role":"tool","content":"r","tool_call_id":"1"}])");
}

TEST(RequestTable, WrongMessagesAreRefusedWithTheirPlace) {
  const std::pair<const char*, const char*> cases[] = {
      {"[]", "messages"},
      {"{}", "messages"},
      {"[1]", "messages[0]"},
      {R"([{"content":"a"}])", "messages[0].role"},
      {R"([{"role":1,"content":"a"}])", "messages[0].role"},
      {R"([{"role":"user"}])", "messages[0].content"},
      {R"([{"role":"user","content":"a"},{"role":"user","content":1}])", "messages[1].content"},
      {R"([{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}])", "messages[0].content[0].type"},
      {R"([{"role":"user","content":[{"type":"text"}]}])", "messages[0].content[0].text"},
      {R"([{"role":"assistant","tool_calls":[{"function":{"arguments":"{"}}]}])", "messages[0].tool_calls[0].function.arguments"},
  };
  for (const auto& [messages, param] : cases) {
    const auto error = parse(Endpoint::kChat, fmt::format("{{\"messages\":{}}}", messages));
    ASSERT_TRUE(error) << messages;
    EXPECT_EQ(error->param, param) << messages;
  }
}

TEST(RequestTable, FieldsThatContradictEachOtherAreRefused) {
  const std::pair<const char*, const char*> cases[] = {
      {R"("stream_options":{"include_usage":true})", "stream_options"},
      {R"("top_logprobs":3)", "top_logprobs"},
      {R"("min_tokens":5,"max_tokens":4)", "min_tokens"},
      {R"("top_p":1e-50)", "top_p"},  // zero in single precision
      {R"("repetition_penalty":1e-50)", "repetition_penalty"},
      {R"("continue_final_message":true)", "continue_final_message"},
      {R"("tool_choice":"required")", "tool_choice"},
      {R"("tool_choice":{"type":"function"})", "tool_choice"},
      {R"("response_format":{"type":"json_object"})", "response_format.type"},
      {R"("stream":true,"stream_options":{"x":true})", "stream_options.x"},
  };
  for (const auto& [fields, param] : cases) {
    const auto error = parse(Endpoint::kChat, fmt::format(R"({{"messages":[{{"role":"user","content":"a"}}],{}}})", fields));
    ASSERT_TRUE(error) << fields;
    EXPECT_EQ(error->param, param);
  }
}

}  // namespace
}  // namespace millrace
