#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "millrace/engine/class_scores.h"
#include "millrace/engine/encoder_engine.h"
#include "millrace/engine/engine.h"
#include "millrace/sampling/sampling.h"
#include "millrace/tokenizer/chat_template.h"
#include "millrace/tokenizer/tokenizer.h"

namespace millrace {

// One model as the server offers it. The pointed-to objects must outlive the server; the engine has been started.
struct ServedModel {
  std::string name;                    // its id in /v1/models
  std::vector<std::string> aliases;    // other values of "model" that mean it
  Engine* engine = nullptr;            // of a model that writes text, or
  EncoderEngine* encoder = nullptr;    // of one that makes embeddings or scores; the other is null
  std::string kind;                    // what it is, for errors: "an encoder that makes embeddings of 384 numbers (bert family)"
  std::optional<ClassScores> classes;  // of an encoder that scores texts
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat_template = nullptr;  // null: chat is refused with chat_template_error
  std::string chat_template_error = "this model has no chat template";
  std::string bos_token, eos_token;                        // for the template
  SamplingParams default_sampling;                         // generation_config.json's; fields that a request leaves out take these
  std::vector<std::pair<std::string, std::string>> facts;  // shown by /v1/engine/stats and the page: {"isa", "avx2"} ...
};

}  // namespace millrace
