#include "millrace/engine/speculation_options.h"

#include <fmt/format.h>

#include "millrace/base/check.h"
#include "millrace/engine/draft_planner.h"
#include "millrace/engine/prompt_lookup.h"
#include "millrace/engine/suffix_drafter.h"

namespace millrace {
namespace {

Status check_range(std::string_view name, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return Status::ok();
  return Status::invalid_argument(fmt::format("{} is {}, expected {} to {}", name, value, least, most));
}

}  // namespace

std::string_view speculation_method_name(SpeculationMethod method) {
  switch (method) {
    case SpeculationMethod::kOff: return "off";
    case SpeculationMethod::kNgram: return "ngram";
    case SpeculationMethod::kSuffix: return "suffix";
  }
  return "unknown";
}

Status check_speculation(const SpeculationOptions& options, const ExecutorInfo& info) {
  if (options.method == SpeculationMethod::kOff) return Status::ok();
  MR_RETURN_IF_ERROR(check_range("num_speculative_tokens", options.num_speculative_tokens, 1, DraftPlanner::kDraftTokensMax));
  MR_RETURN_IF_ERROR(check_range("prompt_lookup_min", options.prompt_lookup_min, 1, 16));
  const OutputHistory::Options& past = options.past_output;
  MR_RETURN_IF_ERROR(check_range("suffix_decoding_max_tree_depth", past.depth_max, 2, 256));
  MR_RETURN_IF_ERROR(check_range("suffix_decoding_max_cached_requests", past.num_outputs_max, 0, int64_t{1} << 24));
  MR_RETURN_IF_ERROR(check_range("suffix_decoding_max_cached_tokens", past.num_tokens_max, 1, int64_t{1} << 24));
  if (info.has_state()) {
    return Status::unsupported(fmt::format(
        "speculation by {}: this network keeps a state in place of keys and values, from which a rejected draft cannot be taken "
        "back",
        speculation_method_name(options.method)));
  }
  return Status::ok();
}

std::unique_ptr<DraftSource> make_draft_source(const SpeculationOptions& options) {
  switch (options.method) {
    case SpeculationMethod::kOff: return nullptr;
    case SpeculationMethod::kNgram: return std::make_unique<PromptLookupSource>(options.prompt_lookup_min);
    case SpeculationMethod::kSuffix: return std::make_unique<SuffixSource>(options.past_output, options.prompt_lookup_min);
  }
  MR_CHECK(false, "a method");
  return nullptr;
}

}  // namespace millrace
