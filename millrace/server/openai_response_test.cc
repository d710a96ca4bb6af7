#include "millrace/server/openai_response.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <limits>

#include "millrace/base/json.h"

namespace millrace {
namespace {

// Bytes as tokens, ids 0 to 255 in an arbitrary order, and one special token.
Tokenizer byte_tokenizer() {
  std::string vocab;
  for (int byte = 0x21; byte < 0x7f; ++byte) {
    json::object entry;
    entry[std::string(1, static_cast<char>(byte))] = byte - 0x21;
    const std::string text = json::serialize(entry);
    vocab += (vocab.empty() ? "" : ",") + text.substr(1, text.size() - 2);
  }
  Result<Tokenizer> tokenizer = Tokenizer::from_json(
      R"({"version":"1.0","added_tokens":[{"id":200,"content":"<|end|>","special":true,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false}],
          "normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false},"post_processor":null,
          "decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false},
          "model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,
                   "byte_fallback":false,"vocab":{)" +
          vocab + R"(},"merges":[]}})",
      "");
  MR_CHECK(tokenizer.is_ok(), tokenizer.status().message());
  return std::move(tokenizer).value();
}

json::value event_json(const std::string& event) {
  EXPECT_TRUE(event.starts_with("data: ") && event.ends_with("\n\n")) << event;
  EXPECT_EQ(event.find('\n'), event.size() - 2) << "an event is one line";
  Result<json::value> parsed = parse_json(event.substr(6, event.size() - 8));
  EXPECT_TRUE(parsed.is_ok()) << event;
  return parsed.is_ok() ? std::move(parsed).value() : json::value();
}

class OpenAiResponseTest : public testing::Test {
 protected:
  Tokenizer tokenizer_ = byte_tokenizer();
  OpenAiResponse chat_{Endpoint::kChat, "chatcmpl-1", 17, "m\"x", tokenizer_};
  OpenAiResponse completions_{Endpoint::kCompletions, "cmpl-1", 17, "m", tokenizer_};
};

TEST_F(OpenAiResponseTest, ChatChunks) {
  EXPECT_EQ(event_json(chat_.role_chunk(1, {})),
            json::parse(R"({"id":"chatcmpl-1","object":"chat.completion.chunk","created":17,"model":"m\"x","choices":[
                {"index":1,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]})"));
  ChoiceOutput output;
  output.text = "line\nbreak\xff";
  EXPECT_EQ(event_json(chat_.chunk(output, {.present = true})),
            json::parse(R"({"id":"chatcmpl-1","object":"chat.completion.chunk","created":17,"model":"m\"x","choices":[
                {"index":0,"delta":{"content":"line\nbreak\ufffd"},"logprobs":null,"finish_reason":null}],"usage":null})"));
  const std::variant<std::monostate, int32_t, std::string> stop = std::string("END");
  output.text = "";
  output.finish_reason = FinishReason::kStop;
  output.stop_reason = &stop;
  EXPECT_EQ(event_json(chat_.chunk(output, {})).at("choices").at(0),
            json::parse(R"({"index":0,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":"END"})"));
}

TEST_F(OpenAiResponseTest, UsageChunkHasNoChoices) {
  const Usage usage{.prompt_tokens = 5, .completion_tokens = 3, .cached_tokens = 2};
  const json::value chunk = event_json(completions_.usage_chunk(usage));
  EXPECT_TRUE(chunk.at("choices").as_array().empty());
  EXPECT_EQ(chunk.at("usage"),
            json::parse(R"({"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":2}})"));
}

TEST_F(OpenAiResponseTest, WholeAnswers) {
  const std::variant<std::monostate, int32_t, std::string> stop = int32_t{200};
  ChoiceOutput outputs[2];
  outputs[0].text = "one";
  outputs[0].finish_reason = FinishReason::kLength;
  outputs[1].index = 1;
  outputs[1].text = "two";
  outputs[1].finish_reason = FinishReason::kStop;
  outputs[1].stop_reason = &stop;
  const Usage usage{.prompt_tokens = 1, .completion_tokens = 6};
  EXPECT_EQ(parse_json(chat_.whole(outputs, usage)).value().at("choices"), json::parse(R"([
      {"index":0,"message":{"role":"assistant","content":"one","refusal":null},"logprobs":null,"finish_reason":"length","stop_reason":null},
      {"index":1,"message":{"role":"assistant","content":"two","refusal":null},"logprobs":null,"finish_reason":"stop","stop_reason":200}])"));
  EXPECT_EQ(parse_json(completions_.whole(outputs, usage)).value().at("choices").at(0),
            json::parse(R"({"index":0,"text":"one","logprobs":null,"finish_reason":"length","stop_reason":null})"));
}

TEST_F(OpenAiResponseTest, Logprobs) {
  const int32_t a = *tokenizer_.token_to_id("a"), b = *tokenizer_.token_to_id("b");
  const TokenLogprob logprobs[] = {{a, -0.5f, {{a, -0.5f}, {b, -std::numeric_limits<float>::infinity()}}}, {b, -0.25f, {}}};
  ChoiceOutput output;
  output.text = "ab";
  output.wants_logprobs = true;
  output.logprobs = logprobs;
  output.text_offset = 7;
  EXPECT_EQ(event_json(chat_.chunk(output, {})).at("choices").at(0).at("logprobs"), json::parse(R"({"content":[
      {"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":[{"token":"a","logprob":-0.5,"bytes":[97]},{"token":"b","logprob":-9999,"bytes":[98]}]},
      {"token":"b","logprob":-0.25,"bytes":[98],"top_logprobs":[]}],"refusal":null})"));
  EXPECT_EQ(event_json(completions_.chunk(output, {})).at("choices").at(0).at("logprobs"), json::parse(R"(
      {"tokens":["a","b"],"token_logprobs":[-0.5,-0.25],"top_logprobs":[{"a":-0.5,"b":-9999},{}],"text_offset":[7,8]})"));
}

TEST_F(OpenAiResponseTest, PromptLogprobs) {
  const int32_t a = *tokenizer_.token_to_id("a"), b = *tokenizer_.token_to_id("b"), c = *tokenizer_.token_to_id("c");
  const float none = std::numeric_limits<float>::quiet_NaN();
  const TokenLogprob prompt[] = {
      {a, none, {}}, {b, -2.5f, {{a, -0.5f}, {b, -2.5f}, {c, -4.0f}}, 2}, {c, -7.0f, {{a, -0.25f}, {b, -2.0f}}, 9}};
  ChoiceOutput output;
  output.text = "d";
  output.prompt_logprobs = prompt;
  output.num_prompt_logprobs = 2;
  const json::value expected = json::parse(fmt::format(R"([null,
      {{"{1}":{{"logprob":-2.5,"rank":2,"decoded_token":"b"}},"{0}":{{"logprob":-0.5,"rank":1,"decoded_token":"a"}}}},
      {{"{2}":{{"logprob":-7,"rank":9,"decoded_token":"c"}},"{0}":{{"logprob":-0.25,"rank":1,"decoded_token":"a"}},
        "{1}":{{"logprob":-2,"rank":2,"decoded_token":"b"}}}}])",
                                                       a, b, c));
  const Usage usage{.prompt_tokens = 3, .completion_tokens = 1};
  EXPECT_EQ(parse_json(completions_.whole({&output, 1}, usage)).value().at("choices").at(0).at("prompt_logprobs"), expected);
  const json::value chat = parse_json(chat_.whole({&output, 1}, usage)).value();
  EXPECT_EQ(chat.at("prompt_logprobs"), expected);
  EXPECT_FALSE(chat.at("choices").at(0).as_object().contains("prompt_logprobs"));
  output.prompt_logprobs.reset();
  EXPECT_FALSE(parse_json(chat_.whole({&output, 1}, usage)).value().as_object().contains("prompt_logprobs"));
}

TEST_F(OpenAiResponseTest, TheFirstTokenOfAnEchoHasNoLogprob) {
  const int32_t a = *tokenizer_.token_to_id("a"), b = *tokenizer_.token_to_id("b");
  const TokenLogprob logprobs[] = {{a, std::numeric_limits<float>::quiet_NaN(), {}}, {b, -0.25f, {{b, -0.25f}}}};
  ChoiceOutput output;
  output.text = "ab";
  output.wants_logprobs = true;
  output.logprobs = logprobs;
  EXPECT_EQ(event_json(completions_.chunk(output, {})).at("choices").at(0).at("logprobs"), json::parse(R"(
      {"tokens":["a","b"],"token_logprobs":[null,-0.25],"top_logprobs":[null,{"b":-0.25}],"text_offset":[0,1]})"));
}

}  // namespace
}  // namespace millrace
