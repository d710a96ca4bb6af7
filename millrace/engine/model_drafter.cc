#include "millrace/engine/model_drafter.h"

#include <fmt/format.h>

#include <algorithm>

#include "millrace/base/check.h"

namespace millrace {
namespace {

// Bytes in quotes; those that are no printable ASCII as \xNN.
std::string quoted(std::string_view bytes) {
  std::string text = "\"";
  for (const char c : bytes.substr(0, 40)) {
    if (c >= 0x20 && c < 0x7f) {
      text += c;
    } else {
      text += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
  }
  return text + "\"";
}

std::string id_text(std::optional<int32_t> id) { return id ? fmt::format("token {}", *id) : "none"; }

}  // namespace

Status check_same_vocabulary(const Tokenizer& draft, const Tokenizer& target) {
  const auto differ = [](const std::string& what) {
    return Status::invalid_argument(fmt::format("the draft model's vocabulary is another one: {}", what));
  };
  if (draft.vocab_size() != target.vocab_size())
    return differ(fmt::format("it has {} tokens, expected the target's {}", draft.vocab_size(), target.vocab_size()));
  for (int32_t id = 0; id < target.vocab_size(); ++id) {
    const std::string bytes = draft.token_bytes(id), expected = target.token_bytes(id);
    if (bytes != expected) return differ(fmt::format("token {} is {}, expected the target's {}", id, quoted(bytes), quoted(expected)));
    if (draft.is_special(id) != target.is_special(id))
      return differ(fmt::format("token {}, {}, is {}special, of the target it is {}", id, quoted(draft.id_to_token(id)),
                                draft.is_special(id) ? "" : "not ", target.is_special(id) ? "" : "not"));
  }
  if (draft.bos_token_id() != target.bos_token_id())
    return differ(fmt::format("BOS is {}, expected the target's, {}", id_text(draft.bos_token_id()), id_text(target.bos_token_id())));
  if (draft.eos_token_id() != target.eos_token_id())
    return differ(fmt::format("EOS is {}, expected the target's, {}", id_text(draft.eos_token_id()), id_text(target.eos_token_id())));
  return Status::ok();
}

class ModelDraftSource::Follower : public Drafter {
 public:
  explicit Follower(ModelDraftSource& source) : source_(source), block_tables_(source.executor_.info().kv_groups.size()) {
    source_.followers_.push_back(this);
  }
  ~Follower() override {
    release();
    std::erase(source_.followers_, this);
  }

  void extend(std::span<const int32_t> tokens, int64_t) override {
    is_current = true;
    num_tokens_ = static_cast<int64_t>(tokens.size());
    // The target has drawn after the drafts as far as they were right; where it computed fewer of them, the next one is judged all the
    // same.
    int64_t num_right = 0;
    for (const int32_t drafted : drafted_) {
      if (drafted_at_ + num_right >= num_tokens_) break;
      const bool accepted = tokens[static_cast<std::size_t>(drafted_at_ + num_right)] == drafted;
      acceptance_.observe(accepted, .95);
      source_.acceptance_.observe(accepted, .995);
      if (!accepted) break;
      ++num_right;
    }
    // The last token is computed again where it was a draft: what comes after it is wanted.
    if (!drafted_.empty()) num_computed_ = std::min({num_computed_, drafted_at_ + num_right, num_tokens_ - 1});
    drafted_.clear();
  }

  void predict(int64_t most, std::vector<double>& probabilities) override {
    if (found_no_room_at_ == source_.num_releases_) return;  // as little room as the last time
    // The last draft token is not computed, only drawn.
    most = std::min(most, source_.executor_.info().max_positions - num_tokens_ + 1);
    constexpr double kUsual = .7;
    const double probability = acceptance_.probability(source_.acceptance_.probability(kUsual));
    for (int64_t k = 0; k < most; ++k) probabilities.push_back(probability);
  }

  double overhead_seconds() const override {
    return num_missing() > kFewRows ? static_cast<double>(num_missing()) * source_.prompt_row_seconds_ : 0;
  }

  void draft(std::vector<int32_t>& tokens, int64_t count) override {
    const auto available = std::min<std::ptrdiff_t>(count, static_cast<std::ptrdiff_t>(drafted_.size()));
    tokens.insert(tokens.end(), drafted_.begin(), drafted_.begin() + available);
  }
  void finish(std::span<const int32_t>, int64_t) override { release(); }

  int64_t num_missing() const { return num_tokens_ - num_computed_; }
  int64_t num_computed() const { return num_computed_; }
  std::span<const int32_t> block_table(std::size_t group) const { return block_tables_[group]; }
  void count_computed(int64_t num_rows) { num_computed_ += num_rows; }
  // Takes what was drawn after num_tokens tokens off the sequence.
  void take_draft(std::vector<int32_t>& tokens) {
    drafted_.assign(tokens.begin() + static_cast<std::ptrdiff_t>(num_tokens_), tokens.end());
    drafted_at_ = num_tokens_;
    tokens.resize(static_cast<std::size_t>(num_tokens_));
  }

  // Blocks for so many tokens. False: there are not enough, and it has none now: who goes without drafts keeps no one else from them.
  bool grow(int64_t num_tokens) {
    const auto num_blocks = static_cast<std::size_t>((num_tokens + kKvBlockTokens - 1) / kKvBlockTokens);
    for (std::size_t g = 0; g < block_tables_.size(); ++g) {
      while (block_tables_[g].size() < num_blocks) {
        const std::optional<int32_t> block = source_.allocator_.allocate(static_cast<int64_t>(g));
        if (!block) {
          release();
          found_no_room_at_ = source_.num_releases_;
          return false;
        }
        block_tables_[g].push_back(*block);
      }
    }
    return true;
  }

  void release() {
    bool any = false;
    for (std::size_t g = 0; g < block_tables_.size(); ++g) {
      for (const int32_t block : block_tables_[g]) source_.allocator_.release(static_cast<int64_t>(g), block);
      any = any || !block_tables_[g].empty();
      block_tables_[g].clear();
    }
    source_.num_releases_ += any ? 1 : 0;
    num_computed_ = 0;
  }

  bool is_current = false;  // it decodes in this step

 private:
  ModelDraftSource& source_;
  std::vector<std::vector<int32_t>> block_tables_;  // [num_groups]
  int64_t num_tokens_ = 0;                          // of the sequence
  int64_t num_computed_ = 0;                        // of them in the draft model's KV
  std::vector<int32_t> drafted_;                    // after the first drafted_at_ tokens
  int64_t drafted_at_ = 0;
  int64_t found_no_room_at_ = -1;  // num_releases_ then
  AcceptanceRate acceptance_;      // of this sequence
};

Result<std::unique_ptr<ModelDraftSource>> ModelDraftSource::create(Executor& executor, Options options) {
  MR_CHECK(options.rows_max >= 1 && options.num_blocks >= 1 && options.clock, "options of a draft model");
  std::unique_ptr<ModelDraftSource> source(new ModelDraftSource(executor, std::move(options)));
  MR_RETURN_IF_ERROR(executor.allocate_kv(std::vector<int64_t>(executor.info().kv_groups.size(), source->options_.num_blocks))
                         .with_context("draft model"));
  return source;
}

std::unique_ptr<Drafter> ModelDraftSource::follow(const DraftOwner&) { return std::make_unique<Follower>(*this); }

int64_t ModelDraftSource::num_used_blocks() const {
  int64_t used = 0;
  for (int64_t g = 0; g < allocator_.num_groups(); ++g) used += allocator_.num_used(g);
  return used;
}

void ModelDraftSource::compute(std::span<const DraftWork> work) {
  for (Follower* follower : followers_) {
    if (!follower->is_current) follower->release();
    follower->is_current = false;
  }
  rows_.clear();
  for (const DraftWork& wanted : work) {
    Follower& follower = static_cast<Follower&>(*wanted.drafter);
    const auto num_tokens = static_cast<int64_t>(wanted.tokens->size());
    if (follower.grow(num_tokens + wanted.count - 1)) rows_.push_back({&wanted, &follower});
  }
  if (rows_.empty()) return;
  plan_first_rows();
  run_step();
  while (plan_next_rows()) run_step();
  for (const Row& row : rows_) row.follower->take_draft(*row.work->tokens);
}

// What the draft model has not seen. Those who lack little go first: a long prompt delays nobody else's draft.
void ModelDraftSource::plan_first_rows() {
  std::stable_partition(rows_.begin(), rows_.end(), [](const Row& row) { return row.follower->num_missing() <= kFewRows; });
  int64_t left = options_.rows_max;
  for (Row& row : rows_) {
    const int64_t missing = row.follower->num_missing();
    MR_CHECK(missing >= 1, "the last token of a sequence that decodes was not computed");
    row.num_rows = std::min(missing, left);
    row.wants_token = row.num_rows == missing;
    left -= row.num_rows;
  }
}

// False: every draft is as long as was wanted.
bool ModelDraftSource::plan_next_rows() {
  bool any = false;
  for (Row& row : rows_) {
    const bool goes_on = row.wants_token && !row.ended && row.num_drawn < row.work->count;
    row.num_rows = goes_on ? 1 : 0;
    any = any || goes_on;
  }
  return any;
}

void ModelDraftSource::run_step() {
  plan_.clear();
  sampling_.clear();
  sampling_.reserve(rows_.size());
  int64_t num_sequences = 0, num_rows_most = 0;
  for (const Row& row : rows_) {
    if (row.num_rows == 0) continue;
    ++num_sequences;
    num_rows_most = std::max(num_rows_most, row.num_rows);
    const DraftWork& work = *row.work;
    const std::span<const int32_t> tokens(*work.tokens);
    const int64_t position = row.follower->num_computed();
    const auto row_begin = static_cast<int32_t>(plan_.tokens.size());
    const auto first = tokens.subspan(static_cast<std::size_t>(position), static_cast<std::size_t>(row.num_rows));
    plan_.tokens.insert(plan_.tokens.end(), first.begin(), first.end());
    const auto row_end = static_cast<int32_t>(plan_.tokens.size());
    const int64_t rope_short_length = executor_.info().rope_short_length;
    plan_.sequences.push_back({row_begin, row_end, static_cast<int32_t>(position),
                               rope_short_length > 0 && work.num_tokens_expected > rope_short_length,
                               static_cast<int32_t>(work.num_prompt_tokens), 0});
    if (!row.wants_token) continue;
    SamplingInput& sampling = sampling_.emplace_back(work.sampling);
    sampling.prompt_tokens = tokens.first(static_cast<std::size_t>(work.num_prompt_tokens));
    sampling.completion_tokens = tokens.subspan(static_cast<std::size_t>(work.num_prompt_tokens));
    sampling.position = sampling.completion_tokens.size();
    sampling.forbidden = {};
    if (static_cast<int64_t>(sampling.position) < work.min_tokens) sampling.forbidden = work.stop_token_ids;
    plan_.outputs.push_back({row_end - 1, &sampling});
  }
  plan_.table_begin.push_back(0);
  for (std::size_t g = 0; g < executor_.info().kv_groups.size(); ++g) {
    for (const Row& row : rows_) {
      if (row.num_rows == 0) continue;
      const int64_t num_tokens = row.follower->num_computed() + row.num_rows;
      const auto table = row.follower->block_table(g).first(static_cast<std::size_t>((num_tokens + kKvBlockTokens - 1) / kKvBlockTokens));
      plan_.block_ids.insert(plan_.block_ids.end(), table.begin(), table.end());
      plan_.table_begin.push_back(static_cast<int32_t>(plan_.block_ids.size()));
    }
  }
  const double begun = options_.clock();
  executor_.enqueue(plan_);
  const StepOutput& output = executor_.wait();
  const double seconds = options_.clock() - begun;
  if (num_rows_most <= kFewRows) {
    round_seconds_.observe(num_sequences, seconds);
  } else {
    const double each = seconds / static_cast<double>(plan_.tokens.size());
    prompt_row_seconds_ = prompt_row_seconds_ > 0 ? (prompt_row_seconds_ + each) / 2 : each;
  }
  std::size_t next_output = 0;
  for (Row& row : rows_) {
    if (row.num_rows == 0) continue;
    row.follower->count_computed(row.num_rows);
    if (!row.wants_token) continue;
    const SampledToken& token = output.tokens[next_output++];
    if (token.finite && token.id >= 0) {
      row.work->tokens->push_back(token.id);
      ++row.num_drawn;
    } else {
      row.ended = true;
    }
  }
}

}  // namespace millrace
