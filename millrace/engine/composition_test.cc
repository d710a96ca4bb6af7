// Everything goes with everything, or is refused at once and by name: each pair and each triple of features over tiny models, token for
// token what the plain path gives. docs/composition.md is what this test found out; MILLRACE_WRITE_DOCS=1 writes it anew.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <sstream>

#include "millrace/base/test_data.h"
#include "millrace/engine/engine.h"
#include "millrace/engine/loaded_model.h"
#include "millrace/model/sequence_runner.h"

namespace millrace {
namespace {

constexpr int64_t kPromptTokens = 45, kMaxTokens = 36;

// What is asked for and how it is computed. The first part decides about the answer, the second must not.
struct Setting {
  GenerationRequest request;
  KvDType kv_dtype = KvDType::kBf16;

  EngineOptions options;
  int num_threads = 1;
  bool cached = false;     // the prompt was computed before
  bool answered = false;   // and answered: a past answer to draft from
  bool strangers = false;  // other requests run beside
  bool cancels = false;    // and are cancelled in the middle
  bool scarce = false;     // of KV blocks there are hardly more than one sequence needs
};

// What the plain answer offers to features that need to know it.
struct Plain {
  std::vector<int32_t> tokens;  // greedy
  const Tokenizer* tokenizer = nullptr;
};

struct Feature {
  std::string axis;  // of which a setting has one feature at most
  std::string name;
  bool of_answer;
  std::function<void(Setting&, const Plain&)> apply;
};

std::string some_text_of(const Plain& plain) {
  for (std::size_t i = 8; i + 1 < plain.tokens.size(); ++i) {
    const std::string text = plain.tokenizer->decode(std::span(plain.tokens).subspan(i, 1), true).value();
    if (!text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c > 0; })) return text;
  }
  return "e";
}

SpeculationOptions always(SpeculationMethod method) {
  return {.method = method, .num_speculative_tokens = 5, .prompt_lookup_min = 1, .adaptive = false};
}

void draw(Setting& setting) { setting.request.sampling.temperature = 1; }

const std::vector<Feature>& features() {
  static const std::vector<Feature> all = {
      {"speculation", "drafts by prompt lookup", false,
       [](Setting& s, const Plain&) { s.options.speculation = always(SpeculationMethod::kNgram); }},
      {"speculation", "drafts from past answers", false,
       [](Setting& s, const Plain&) {
         s.options.speculation = always(SpeculationMethod::kSuffix);
         s.answered = true;
       }},
      {"prefix cache", "a cached prefix", false,
       [](Setting& s, const Plain&) {
         s.options.prefix_cache = true;
         s.cached = true;
       }},
      {"prefill", "prompts in chunks", false,
       [](Setting& s, const Plain&) {
         s.options.step_tokens_max = 11;
         s.options.prefill_chunk_max = 7;
       }},
      {"pacing", "a TPOT target", false,
       [](Setting& s, const Plain&) {
         s.options.tpot_target_seconds = 1e-6;
         s.strangers = true;
       }},
      {"company", "other requests", false, [](Setting& s, const Plain&) { s.strangers = true; }},
      {"company", "others cancelled", false, [](Setting& s, const Plain&) { s.strangers = s.cancels = true; }},
      {"memory", "preemption", false, [](Setting& s, const Plain&) { s.strangers = s.scarce = true; }},
      {"threads", "3 threads", false, [](Setting& s, const Plain&) { s.num_threads = 3; }},
      {"KV cache", "f32 KV", true, [](Setting& s, const Plain&) { s.kv_dtype = KvDType::kF32; }},
      {"KV cache", "int8 KV", true, [](Setting& s, const Plain&) { s.kv_dtype = KvDType::kInt8; }},
      {"KV cache", "fp8 KV", true, [](Setting& s, const Plain&) { s.kv_dtype = KvDType::kFp8E4M3; }},
      {"KV cache", "int4 KV", true, [](Setting& s, const Plain&) { s.kv_dtype = KvDType::kInt4; }},
      {"sequences", "n = 3", true, [](Setting& s, const Plain&) { s.request.n = 3; }},
      {"sequences", "beam search", true,
       [](Setting& s, const Plain&) {
         s.request.n = 3;
         s.request.beams = BeamParams{};
       }},
      {"drawing", "temperature", true, [](Setting& s, const Plain&) { draw(s); }},
      {"drawing", "penalties, DRY", true,
       [](Setting& s, const Plain&) {
         draw(s);
         s.request.sampling.repetition_penalty = 1.2f, s.request.sampling.frequency_penalty = 0.5f;
         s.request.sampling.dry_multiplier = 0.8f;
       }},
      {"drawing", "masks, bias", true,
       [](Setting& s, const Plain& plain) {
         draw(s);
         s.request.sampling.bad_words = {{plain.tokens[1]}};
         s.request.sampling.logit_bias = {{plain.tokens[0], 3.0f}};
       }},
      {"drawing", "Mirostat", true,
       [](Setting& s, const Plain&) {
         draw(s);
         s.request.sampling.mirostat = 2;
       }},
      {"end", "stop token", true, [](Setting& s, const Plain& plain) { s.request.stop_token_ids = {plain.tokens[9]}; }},
      {"end", "stop text", true, [](Setting& s, const Plain& plain) { s.request.stop = {some_text_of(plain)}; }},
      {"end", "min_tokens", true,
       [](Setting& s, const Plain& plain) {
         s.request.stop_token_ids = {plain.tokens[0], plain.tokens[9]};
         s.request.min_tokens = 5;
       }},
      {"scores", "logprobs", true, [](Setting& s, const Plain&) { s.request.sampling.num_logprobs = 2; }},
      {"scores", "prompt logprobs", true, [](Setting& s, const Plain&) { s.request.num_prompt_logprobs = 2; }},
  };
  return all;
}

// Indices of features(), ascending, no two of one axis.
using Combination = std::vector<std::size_t>;

std::string name_of(const Combination& combination) {
  std::string name = "plain";
  for (const std::size_t f : combination) name += fmt::format(" + {}", features()[f].name);
  return name;
}

std::vector<Combination> combinations_up_to(std::size_t size) {
  std::vector<Combination> all = {{}};
  for (std::size_t begin = 0, end = 1; size > 0; --size, begin = end, end = all.size()) {
    for (std::size_t i = begin; i < end; ++i) {
      for (std::size_t f = all[i].empty() ? 0 : all[i].back() + 1; f < features().size(); ++f) {
        const auto same_axis = [&](std::size_t other) { return features()[other].axis == features()[f].axis; };
        if (std::any_of(all[i].begin(), all[i].end(), same_axis)) continue;
        Combination longer = all[i];
        longer.push_back(f);
        all.push_back(std::move(longer));
      }
    }
  }
  return all;
}

struct SequenceAnswer {
  std::vector<int32_t> tokens;
  std::string text;
  std::vector<float> logprobs;  // of its tokens, and of the likeliest at each place: equal numbers, so equal bits of logits
  std::optional<FinishReason> reason;
  bool operator==(const SequenceAnswer&) const = default;
};

struct Answer {
  Status refused;  // by the engine's options or by the request
  std::vector<SequenceAnswer> sequences;
  std::vector<float> prompt_logprobs;
  int64_t prompt_tokens = 0, completion_tokens = 0;
  EngineMetrics metrics;
};

void take_logprobs(const std::vector<TokenLogprob>& from, std::vector<float>& to) {
  for (const TokenLogprob& token : from) {
    to.push_back(token.logprob);
    for (const auto& [id, logprob] : token.top_logprobs) to.push_back(logprob);
  }
}

class Model {
 public:
  explicit Model(const std::filesystem::path& path) {
    for (const int num_threads : {1, 3})
      loaded_.emplace(num_threads, LoadedModel::load(path.string(), {.num_threads = num_threads}).value());
    std::mt19937 random(5);
    // The same dozen tokens again and again: something to look up.
    for (int64_t i = 0; i < kPromptTokens; ++i) prompt_.push_back(i < 12 ? token(random) : prompt_[static_cast<std::size_t>(i - 12)]);
    plain_.tokenizer = *loaded_.at(1)->tokenizer();
    const Answer plain = run(setting({}));
    MR_CHECK(plain.refused.is_ok(), plain.refused.message());
    plain_.tokens = plain.sequences[0].tokens;
  }

  const Network& network() const { return loaded_.at(1)->network(); }

  Setting setting(const Combination& combination) const {
    Setting setting;
    setting.request.prompt_tokens = prompt_;
    setting.request.max_tokens = kMaxTokens;
    setting.request.ignore_eos = true;
    setting.request.seed = 11;
    setting.request.sampling.temperature = 0;
    setting.options.prefix_cache = false;
    setting.options.step_tokens_max = 256;
    setting.options.max_running_sequences = 8;
    setting.options.kv_bytes = int64_t{8} << 20;
    setting.options.cache_secret = "composition";
    for (const std::size_t f : combination) features()[f].apply(setting, plain_);
    return setting;
  }

  Answer run(Setting setting) {
    Answer answer;
    LoadedModel& model = *loaded_.at(setting.num_threads);
    if (setting.scarce) setting.options.kv_bytes = scarce_bytes(setting);
    const auto executor =
        model.make_executor(GemmPath::kFast, setting.kv_dtype, static_cast<int32_t>(setting.options.step_tokens_max)).value();
    auto made = Engine::create(*executor, plain_.tokenizer, setting.options);
    if (!made.is_ok()) {
      answer.refused = made.status();
      return answer;
    }
    Engine& engine = **made;
    if (setting.cached || setting.answered) {
      GenerationRequest first = setting.request;
      first.n = 1, first.beams.reset(), first.num_prompt_logprobs = -1;
      if (!setting.answered) first.max_tokens = 1, first.min_tokens = 0;
      MR_CHECK(engine.add(first, [](OutputDelta&) {}).is_ok(), "the first of two");
      while (engine.step()) {
      }
    }
    std::mt19937 random(9);
    std::vector<RequestId> strangers;
    const auto add_strangers = [&](int count) {
      for (; setting.strangers && count > 0; --count)
        strangers.push_back(engine.add(stranger(random, setting), [](OutputDelta&) {}).value());
    };
    add_strangers(2);
    engine.step();
    answer.sequences.resize(static_cast<std::size_t>(setting.request.n));
    const auto added = engine.add(setting.request, [&](OutputDelta& delta) {
      SequenceAnswer& sequence = answer.sequences[static_cast<std::size_t>(delta.sequence)];
      sequence.tokens.insert(sequence.tokens.end(), delta.token_ids.begin(), delta.token_ids.end());
      sequence.text += delta.text;
      take_logprobs(delta.logprobs, sequence.logprobs);
      take_logprobs(delta.prompt_logprobs, answer.prompt_logprobs);
      sequence.reason = delta.finish_reason;
      answer.prompt_tokens = delta.usage.prompt_tokens, answer.completion_tokens = delta.usage.completion_tokens;
    });
    answer.refused = added.is_ok() ? Status::ok() : added.status();
    for (int steps = 0; steps < 6; ++steps) engine.step();
    add_strangers(2);
    for (int steps = 0; engine.step(); ++steps) {
      if (setting.cancels && steps % 4 == 1 && !strangers.empty()) {
        engine.cancel(strangers.back());
        strangers.pop_back();
      }
    }
    answer.metrics = engine.metrics();
    for (const auto& group : answer.metrics.kv_groups) EXPECT_EQ(group.num_used_blocks, 0) << "blocks are left in use";
    return answer;
  }

  // What the network says without an engine, token by token: the judge of the plain path.
  std::vector<int32_t> tokens_without_engine(const Setting& setting, uint64_t sequence) {
    const auto executor = loaded_.at(1)->make_executor(GemmPath::kFast, setting.kv_dtype, 64).value();
    auto runner = SequenceRunner::create(*executor, 2 * (kPromptTokens + kMaxTokens)).value();
    std::vector<int32_t> completion, fed = prompt_;
    if (network().encoder) {
      fed = network().start_tokens;
      MR_CHECK(runner.reset_with_source(prompt_, kMaxTokens + 1, static_cast<int64_t>(fed.size())).is_ok(), "a source text");
    } else {
      runner.reset(kPromptTokens + kMaxTokens, kPromptTokens);
    }
    const std::vector<int32_t> beginning = fed;
    SamplingScratch scratch;
    SampledToken drawn;
    while (static_cast<int64_t>(completion.size()) < *setting.request.max_tokens) {
      const std::vector<int32_t>& stops = setting.request.stop_token_ids;
      SamplingInput input;
      input.params = &setting.request.sampling;
      input.seed = setting.request.seed, input.sequence = sequence, input.position = completion.size();
      input.prompt_tokens = beginning, input.completion_tokens = completion;
      if (static_cast<int64_t>(completion.size()) < setting.request.min_tokens) input.forbidden = stops;
      if (!completion.empty()) input.mirostat_mu = drawn.mirostat_mu;
      const Status status =
          runner.append(fed, 64, false, [&](int64_t, std::span<const float> logits) { sample(logits, input, scratch, drawn); });
      MR_CHECK(status.is_ok(), status.message());
      completion.push_back(drawn.id);
      if (std::count(stops.begin(), stops.end(), drawn.id) > 0) break;
      if (!setting.request.stop.empty() &&
          plain_.tokenizer->decode(completion, true).value().find(setting.request.stop[0]) != std::string::npos)
        break;
      fed = {drawn.id};
    }
    return completion;
  }

 private:
  int32_t token(std::mt19937& random) const { return static_cast<int32_t>(random() % 400); }

  GenerationRequest stranger(std::mt19937& random, const Setting& setting) const {
    GenerationRequest request;
    for (uint32_t left = 10 + random() % 20; left > 0; --left) request.prompt_tokens.push_back(token(random));
    request.max_tokens = 40;
    request.ignore_eos = true;
    request.seed = random();
    request.priority = setting.scarce ? -1 : 0;  // it takes the blocks of what is asked about
    return request;
  }

  // Little more than the least that the options accept and a request of this test fits into.
  int64_t scarce_bytes(const Setting& setting) {
    int64_t& bytes = scarce_bytes_[setting.kv_dtype];
    while (bytes == 0 || !fits(setting, bytes)) bytes += 4096;
    return bytes * 3 / 2;  // two sequences begin and cannot both grow
  }
  bool fits(const Setting& setting, int64_t bytes) {
    const auto executor = loaded_.at(1)->make_executor(GemmPath::kFast, setting.kv_dtype, 256).value();
    EngineOptions options;
    options.kv_bytes = bytes;
    options.step_tokens_max = 256;
    const auto engine = Engine::create(*executor, nullptr, options);
    return engine.is_ok() && (*engine)->max_prompt_tokens() > kPromptTokens &&
           (*engine)->max_completion_tokens(kPromptTokens) >= kMaxTokens && (*engine)->max_completion_tokens(30) >= 40;
  }

  std::map<int, std::unique_ptr<LoadedModel>> loaded_;
  std::vector<int32_t> prompt_;
  Plain plain_;
  std::map<KvDType, int64_t> scarce_bytes_;
};

// What was found out about the models of one kind.
struct Findings {
  std::map<Combination, std::string> refusals;  // the smallest refused ones
  std::set<Combination> equal;                  // of one or two features
  std::size_t num_equal = 0, num_refused = 0;   // of all
  std::map<SpeculationMethod, int64_t> accepted_drafts;
  int64_t cached_tokens = 0, preemptions = 0;
};

bool contains(const Combination& all, const Combination& part) { return std::includes(all.begin(), all.end(), part.begin(), part.end()); }

void expect_plain(Model& model, const Combination& combination, const Answer& answer, std::map<Combination, Answer>& plain) {
  Combination of_answer;
  for (const std::size_t f : combination) {
    if (features()[f].of_answer) of_answer.push_back(f);
  }
  auto known = plain.find(of_answer);
  if (known == plain.end()) {
    const Setting setting = model.setting(of_answer);
    known = plain.emplace(of_answer, model.run(setting)).first;
    for (std::size_t i = 0; i < known->second.sequences.size() && !setting.request.beams; ++i)
      ASSERT_EQ(known->second.sequences[i].tokens, model.tokens_without_engine(setting, i)) << "the plain path";
  }
  const Answer& want = known->second;
  ASSERT_EQ(answer.sequences.size(), want.sequences.size());
  for (std::size_t i = 0; i < want.sequences.size(); ++i) {
    ASSERT_EQ(answer.sequences[i].tokens, want.sequences[i].tokens) << "sequence " << i;
    ASSERT_EQ(answer.sequences[i], want.sequences[i]) << "sequence " << i;
  }
  ASSERT_EQ(answer.prompt_logprobs, want.prompt_logprobs);
  ASSERT_EQ(answer.prompt_tokens, want.prompt_tokens);
  ASSERT_EQ(answer.completion_tokens, want.completion_tokens);
}

void explore(const std::filesystem::path& path, std::size_t size, Findings& findings) {
  Model model(path);
  std::map<Combination, Answer> plain;
  std::map<Combination, std::string> refusals;
  for (const Combination& combination : combinations_up_to(size)) {
    SCOPED_TRACE(name_of(combination));
    const Setting setting = model.setting(combination);
    const Answer answer = model.run(setting);
    const auto cause =
        std::find_if(refusals.begin(), refusals.end(), [&](const auto& refusal) { return contains(combination, refusal.first); });
    if (!answer.refused.is_ok()) {
      ++findings.num_refused;
      ASSERT_TRUE(answer.refused.code() == StatusCode::kInvalidArgument || answer.refused.code() == StatusCode::kUnsupported);
      // Features that go together in pairs go together.
      if (cause == refusals.end()) {
        ASSERT_LE(combination.size(), 2u) << answer.refused.message();
        refusals.emplace(combination, answer.refused.message());
      }
      continue;
    }
    ASSERT_EQ(cause, refusals.end()) << "accepted, but without some of its features refused: " << cause->second;
    ASSERT_NO_FATAL_FAILURE(expect_plain(model, combination, answer, plain));
    ++findings.num_equal;
    if (combination.size() <= 2) findings.equal.insert(combination);
    findings.accepted_drafts[setting.options.speculation.method] += answer.metrics.num_accepted_tokens;
    findings.cached_tokens += answer.metrics.prefix_cache_hits;
    findings.preemptions += answer.metrics.num_preemptions;
  }
  findings.refusals.merge(refusals);
}

struct Kind {
  std::string name;
  std::vector<std::string> models;
  Findings findings;
};

// The chapter of docs/composition.md about the kind.
std::string chapter(const Kind& kind) {
  std::string text =
      fmt::format("## {}\nComputed with {} as tiny models: {} combinations of up to three features, each equal to the plain path.\n",
                  kind.name, fmt::join(kind.models, ", "), kind.findings.num_equal);
  if (!kind.findings.refusals.empty()) text += "\nRefused:\n\n| | the error |\n|---|---|\n";
  for (const auto& [combination, message] : kind.findings.refusals)
    text += fmt::format("| {} | {} |\n", name_of(combination).substr(8), message);
  return text + "\n";
}

std::string table(const Findings& findings) {
  std::string text = "| |";
  for (std::size_t f = 0; f < features().size(); ++f) text += fmt::format(" {} |", f + 1);
  text += "\n|---|";
  for (std::size_t f = 0; f < features().size(); ++f) text += "---|";
  for (std::size_t row = 0; row < features().size(); ++row) {
    text += fmt::format("\n| {} {} |", row + 1, features()[row].name);
    for (std::size_t column = 0; column < features().size(); ++column) {
      const Combination pair = row == column ? Combination{row} : Combination{std::min(row, column), std::max(row, column)};
      const bool alternatives = row != column && features()[row].axis == features()[column].axis;
      text += findings.equal.contains(pair) ? " = |" : alternatives ? " |" : " no |";
    }
  }
  return text + "\n\n";
}

TEST(Composition, EveryTripleOfFeaturesGivesTheTokensOfThePlainPath) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr std::size_t kSize = 2;  // and no text to compare
#else
  constexpr std::size_t kSize = 3;
#endif
  std::vector<Kind> kinds = {
      {"Decoders", {"llama", "gemma3_text", "mpt", "qwen3_moe", "deepseek_v3"}, {}},
      {"Decoders with a state", {"lfm2", "mamba2"}, {}},
      {"Encoder-decoders", {"t5", "bart"}, {}},
  };
  for (Kind& kind : kinds) {
    for (const std::string& model : kind.models) {
      SCOPED_TRACE(model);
      const bool translates = kind.name == "Encoder-decoders";
      explore(source_dir() / "tests/golden" / (translates ? "seq2seq" : "models") / model, kSize, kind.findings);
      if (HasFatalFailure()) return;
    }
    // The features were at work.
    if (kind.name != "Decoders with a state") {
      EXPECT_GT(kind.findings.accepted_drafts[SpeculationMethod::kNgram], 100) << kind.name;
      EXPECT_GT(kind.findings.accepted_drafts[SpeculationMethod::kSuffix], 1000) << kind.name;
    }
    if (kind.name != "Encoder-decoders") {
      EXPECT_GT(kind.findings.cached_tokens, 100) << kind.name;
    }
    EXPECT_GT(kind.findings.preemptions, 10) << kind.name;
    fmt::print("{}: {} combinations equal, {} refused; {} and {} drafts accepted, {} tokens cached, {} preemptions\n", kind.name,
               kind.findings.num_equal, kind.findings.num_refused, kind.findings.accepted_drafts[SpeculationMethod::kNgram],
               kind.findings.accepted_drafts[SpeculationMethod::kSuffix], kind.findings.cached_tokens, kind.findings.preemptions);
  }
  if (kSize < 3) return;

  std::string text =
      "# What goes with what\n"
      "Written by `engine/composition_test.cc`, which runs with every `./test`: each feature alone, each pair and each triple of those "
      "below, on tiny models, beside\n"
      "the same request on the plain path: alone, its prompt in one step, one token a step, one thread. Equal (=) means the same tokens, "
      "text, finish reason, counts and\n"
      "log probabilities, bit for bit, and that the plain path in turn has the tokens that the network and the sampler give without an "
      "engine. What is refused is\n"
      "refused at once, with an error that names it; nothing is left out in silence. Where all pairs of three features go together, so do "
      "the three.\n\n";
  text += table(kinds[0].findings);
  for (const Kind& kind : kinds) text += chapter(kind);
  text += "Write this page anew: `MILLRACE_WRITE_DOCS=1 build/release/engine_test --gtest_filter='Composition.*'`.\n";
  const std::filesystem::path path = source_dir() / "docs/composition.md";
  if (std::getenv("MILLRACE_WRITE_DOCS") != nullptr) std::ofstream(path) << text;
  std::stringstream written;
  written << std::ifstream(path).rdbuf();
  EXPECT_EQ(written.str(), text) << "docs/composition.md is not what the test found: MILLRACE_WRITE_DOCS=1 writes it anew";
}

}  // namespace
}  // namespace millrace
