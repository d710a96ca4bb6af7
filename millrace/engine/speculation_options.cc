#include "millrace/engine/speculation_options.h"

#include <fmt/format.h>

#include "millrace/engine/draft_planner.h"

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
    case SpeculationMethod::kDraftModel: return "draft_model";
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
  if (options.method != SpeculationMethod::kDraftModel) return Status::ok();
  if (options.draft_executor == nullptr) return Status::invalid_argument("speculation by draft_model: there is no draft model");
  MR_RETURN_IF_ERROR(check_range("draft_kv_blocks", options.draft_kv_blocks, 0, INT32_MAX));
  return check_draft_model(options.draft_executor->info(), info);
}

Status check_draft_model(const ExecutorInfo& draft, const ExecutorInfo& target) {
  const auto refused = [](std::string_view why) { return Status::unsupported(fmt::format("speculation by draft_model: {}", why)); };
  if (!target.start_tokens.empty())
    return refused("this network answers source texts (an encoder-decoder), which a draft model does not read");
  if (draft.is_encoder) return refused("the draft model is an encoder, expected a decoder: it writes no text");
  if (!draft.start_tokens.empty()) return refused("the draft model is an encoder-decoder, expected a decoder that continues its own text");
  if (draft.has_state())
    return refused("the draft model keeps a state in place of keys and values, from which a rejected draft cannot be taken back");
  if (draft.sampled_vocab_size != target.sampled_vocab_size) {
    return Status::invalid_argument(fmt::format("speculation by draft_model: the draft model has {} tokens, expected the target's {}",
                                                draft.sampled_vocab_size, target.sampled_vocab_size));
  }
  return Status::ok();
}

}  // namespace millrace
