#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "millrace/cli/batch_file.h"
#include "millrace/cli/conversation.h"

namespace millrace::cli {

struct GenerateOptions : ModelOptions, GenerationOptions {
  std::optional<std::string> prompt;
  std::string file, output;
  bool chat = false;
  int prompt_logprobs = -1;     // -1: none
  int64_t batch_prompting = 0;  // conversations of --file in one prompt; 0: each alone
  bool compare_alone = false;   // and what they are answered alone
};

// What all answers of a run share.
struct Run {
  const GenerateOptions& options;
  LoadedModel& model;
  const Tokenizer& tokenizer;
  Engine& engine;
  SamplingParams sampling;
  uint64_t seed;
};

// The `index`th request of the run: the messages, or where there are none the text.
Result<GenerationRequest> make_request(const Run& run, const std::string& text, const json::array& messages, std::size_t index);

// The answer as --json prints it.
json::object answer_json(const Run& run, std::size_t index, const Completion& done);
void print_prompt_logprobs(const Tokenizer& tokenizer, const std::vector<TokenLogprob>& logprobs);

// Answers every line that is not finished; a line that cannot be answered does not keep the others from it. Printed in the file's order, or
// with --output written to that file as they are finished. kUnavailable when a line has no answer.
Status answer_file(const Run& run, const std::vector<FileLine>& lines, const FinishedLines& finished);

}  // namespace millrace::cli
