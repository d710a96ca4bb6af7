#pragma once

#include <memory>
#include <string_view>

#include "millrace/base/status.h"
#include "millrace/engine/drafter.h"
#include "millrace/engine/output_history.h"
#include "millrace/model/step_plan.h"

namespace millrace {

// Where draft tokens come from.
enum class SpeculationMethod {
  kOff,
  kNgram,       // what the sequence's prompt and completion repeat
  kSuffix,      // and what earlier requests of the same client and cache_salt were answered
  kDraftModel,  // a smaller model of the same vocabulary
};
std::string_view speculation_method_name(SpeculationMethod method);  // "off", "ngram", "suffix", "draft_model"

// Several tokens of a sequence in one step (docs/speculation.md). A draft token is kept exactly when it is the one that would have been
// sampled, so the same tokens come out, greedy and sampled.
struct SpeculationOptions {
  SpeculationMethod method = SpeculationMethod::kOff;
  int64_t num_speculative_tokens = 16;      // most draft tokens of a sequence in a step
  int64_t prompt_lookup_min = 2;            // tokens that must match before one is drafted from the sequence itself; 1 to 16
  OutputHistory::Options past_output = {};  // kSuffix
  bool adaptive = true;                     // only as many as pay by measured acceptance and step time; false: always the most, for tests
  // kDraftModel: what computes the draft model, EngineOptions::step_tokens_max rows a step. Used by one engine only, and outlives it; the
  // engine allocates its KV memory. Both models' token ids must mean the same (check_same_vocabulary).
  Executor* draft_executor = nullptr;
  int64_t draft_kv_blocks = 0;  // of each of its KV groups; 0: as many as the largest group of the target has
};

// kInvalidArgument names the option, what was found and what was expected; kUnsupported the method that does not go with the network.
Status check_speculation(const SpeculationOptions& options, const ExecutorInfo& info);
// kUnsupported or kInvalidArgument: why a model cannot draft for a target. Part of check_speculation().
Status check_draft_model(const ExecutorInfo& draft, const ExecutorInfo& target);

}  // namespace millrace
