#include "millrace/engine/beam_search.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>

#include "millrace/base/mapped_file.h"
#include "millrace/base/test_data.h"
#include "millrace/engine/engine_fixture.h"
#include "millrace/engine/loaded_model.h"

namespace millrace {
namespace {

using Candidates = std::vector<std::pair<int32_t, float>>;
using Tokens = std::vector<std::vector<int32_t>>;

// The log probabilities of every next token after a completion, the most likely first.
using Model = std::function<Candidates(const std::vector<int32_t>&)>;

Model random_model(uint64_t seed, int32_t vocab_size, float spread) {
  return [=](const std::vector<int32_t>& tokens) {
    uint64_t state = seed;
    for (const int32_t token : tokens) state = FakeNetwork::mix(state, static_cast<uint64_t>(token));
    std::vector<double> logits(static_cast<std::size_t>(vocab_size));
    double sum = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      logits[i] = static_cast<double>(FakeNetwork::mix(state, i) >> 40) * 0x1p-24 * static_cast<double>(spread);
      sum += std::exp(logits[i]);
    }
    Candidates candidates;
    for (std::size_t i = 0; i < logits.size(); ++i)
      candidates.emplace_back(static_cast<int32_t>(i), static_cast<float>(logits[i] - std::log(sum)));
    std::stable_sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
    return candidates;
  };
}

Tokens search(const BeamSearch::Options& options, const Model& model) {
  BeamSearch search(options);
  while (!search.is_done()) {
    std::vector<Candidates> candidates;
    for (const BeamSearch::Beam& beam : search.running()) {
      candidates.push_back(model(beam.tokens));
      candidates.back().resize(std::min(candidates.back().size(), static_cast<std::size_t>(search.num_candidates())));
    }
    search.advance(candidates);
  }
  Tokens best;
  for (const BeamSearch::Beam& beam : search.finished()) best.push_back(beam.tokens);
  return best;
}

// Every completion there is, scored and sorted.
Tokens exhaustive(const BeamSearch::Options& options, const Model& model, int32_t vocab_size) {
  std::vector<std::pair<double, std::vector<int32_t>>> all;
  const std::function<void(std::vector<int32_t>&, double)> extend = [&](std::vector<int32_t>& tokens, double score) {
    for (const auto& [token, logprob] : model(tokens)) {
      tokens.push_back(token);
      const double sum = score + static_cast<double>(logprob);
      const bool stops = std::count(options.stop_token_ids.begin(), options.stop_token_ids.end(), token) > 0;
      if (stops || static_cast<int64_t>(tokens.size()) == options.max_tokens) {
        all.emplace_back(sum / std::pow(static_cast<double>(tokens.size()), options.length_penalty), tokens);
      } else {
        extend(tokens, sum);
      }
      tokens.pop_back();
    }
  };
  std::vector<int32_t> none;
  extend(none, 0);
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  Tokens best;
  for (std::size_t i = 0; i < std::min(all.size(), static_cast<std::size_t>(options.width)); ++i) best.push_back(all[i].second);
  EXPECT_GE(static_cast<int64_t>(all.size()), vocab_size);
  return best;
}

TEST(BeamSearch, AsWideAsTheTreeItFindsTheBest) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    for (const double length_penalty : {0.0, 1.0, -1.0, 2.0}) {
      const BeamSearch::Options options{
          .width = 300, .max_tokens = 4, .length_penalty = length_penalty, .early_stopping = EarlyStopping::kNever, .stop_token_ids = {2}};
      const Model model = random_model(seed, 4, 6);
      EXPECT_EQ(search(options, model), exhaustive(options, model, 4)) << seed << " " << length_penalty;
    }
  }
}

TEST(BeamSearch, OfWidthOneItIsGreedy) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const Model model = random_model(seed, 50, 6);
    std::vector<int32_t> greedy;
    while (greedy.size() < 12) greedy.push_back(model(greedy)[0].first);
    EXPECT_EQ(search({.width = 1, .max_tokens = 12}, model), Tokens{greedy});
  }
}

// What the engine's beams must be: the fake network alone.
Tokens reference_beams(const FakeNetwork& network, const GenerationRequest& request, const std::vector<int32_t>& stops) {
  BeamSearch::Options options{request.n, *request.max_tokens, request.beams->length_penalty, request.beams->early_stopping, stops};
  return search(options, [&](const std::vector<int32_t>& completion) {
    std::vector<int32_t> tokens = request.prompt_tokens;
    tokens.insert(tokens.end(), completion.begin(), completion.end());
    std::vector<std::vector<uint64_t>> kv(network.windows().size());
    uint64_t hidden = 0;
    for (std::size_t p = 0; p < tokens.size(); ++p) {
      hidden = network.row(tokens[p], static_cast<int64_t>(p), false, p < request.prompt_tokens.size(),
                           [&](std::size_t g, int64_t position) { return kv[g][static_cast<std::size_t>(position)]; });
      for (std::size_t g = 0; g < kv.size(); ++g) kv[g].push_back(FakeNetwork::mix(hidden, g));
    }
    std::vector<float> logits(static_cast<std::size_t>(network.vocab_size()));
    network.logits(hidden, logits);
    SamplingParams params;
    params.temperature = 0;
    params.num_logprobs = static_cast<int32_t>(network.vocab_size());
    SamplingInput input;
    input.params = &params;
    SamplingScratch scratch;
    SampledToken token;
    sample(logits, input, scratch, token);
    return token.top_logprobs;
  });
}

TEST(BeamSearch, TheEnginesBeamsAreTheReferencesInAnyCompany) {
  const std::vector<std::vector<std::optional<int64_t>>> groupings = {{std::nullopt}, {std::nullopt, 40}, {}};
  for (const auto& windows : groupings) {
    for (const bool prefix_cache : {true, false}) {
      const FakeNetwork network(windows, 23);
      std::mt19937 random(windows.empty() ? 1 : 2);
      EngineOptions options;
      options.max_running_sequences = 5;  // fewer than two requests' beams
      options.step_tokens_max = 40;
      options.prefix_cache = prefix_cache;
      options.kv_bytes = fake_kv_bytes(20 * static_cast<int64_t>(std::max<std::size_t>(1, windows.size())));
      options.max_context = 300;
      options.eos_token_ids = {3, 11};
      TestEngine test(network, options);
      std::vector<std::pair<RequestId, GenerationRequest>> requests;
      for (int i = 0; i < 14; ++i) {
        GenerationRequest request;
        request.prompt_tokens = random_tokens(random, 1 + random() % 120, 23);
        request.max_tokens = 1 + static_cast<int64_t>(random() % 45);
        request.n = 1 + static_cast<int32_t>(random() % 7);
        request.seed = random();
        if (random() % 4 != 0) {
          request.beams = BeamParams{.length_penalty = static_cast<double>(random() % 5) / 2 - 0.5,
                                     .early_stopping = static_cast<EarlyStopping>(random() % 3)};
          request.ignore_eos = random() % 3 == 0;
        }
        requests.emplace_back(test.add(request), request);
        for (uint32_t steps = random() % 5; steps > 0; --steps) test.engine->step();
      }
      const RequestId cancelled = test.add(requests[0].second);
      for (int i = 0; i < 30; ++i) test.engine->step();
      test.engine->cancel(cancelled);
      test.run();
      EXPECT_TRUE(test.logs[cancelled].finished);
      for (const auto& [id, request] : requests) {
        SCOPED_TRACE(testing::Message() << "request " << id << ", " << windows.size() << " groups");
        ASSERT_TRUE(test.logs[id].finished);
        if (!request.beams) continue;
        const Tokens expected = reference_beams(network, request, request.ignore_eos ? std::vector<int32_t>{} : options.eos_token_ids);
        Tokens got;
        int64_t num_tokens = 0;
        for (const auto& [index, sequence] : test.logs[id].sequences) {
          got.push_back(sequence.tokens);
          num_tokens += static_cast<int64_t>(sequence.tokens.size());
          const bool stopped = !request.ignore_eos && (sequence.tokens.back() == 3 || sequence.tokens.back() == 11);
          EXPECT_EQ(sequence.reason, stopped ? FinishReason::kStop : FinishReason::kLength);
        }
        EXPECT_EQ(got, expected);
        EXPECT_EQ(test.logs[id].usage.completion_tokens, num_tokens);
      }
      EXPECT_EQ(test.num_used_blocks(), 0);
      EXPECT_EQ(test.engine->metrics().num_waiting_sequences, 0);
    }
  }
}

TEST(BeamSearch, BeamsComputeOneTokenEachAStep) {
  const FakeNetwork network({std::nullopt, 40});
  TestEngine test(network);
  std::mt19937 random(4);
  GenerationRequest request;
  request.prompt_tokens = random_tokens(random, 75);
  request.max_tokens = 50;
  request.n = 4;
  request.beams.emplace();
  const RequestId id = test.add(request);
  test.run();
  ASSERT_TRUE(test.logs[id].finished);
  // The prompt once, and then each of the four beams' last tokens: blocks are shared, and copied where beams part.
  EXPECT_EQ(test.executor.num_rows_computed(), 75 + 4 * 49);
  EXPECT_GT(test.executor.num_block_copies(), 0);
  EXPECT_EQ(test.num_used_blocks(), 0);
}

TEST(BeamSearch, WhatDoesNotGoWithItIsRefusedByName) {
  TestEngine test(FakeNetwork({std::nullopt}));
  const auto message = [&](auto change) {
    GenerationRequest request;
    request.prompt_tokens = {1, 2};
    request.max_tokens = 3;
    request.beams.emplace();
    change(request);
    const auto added = test.engine->add(request, [](OutputDelta&) {});
    return added.is_ok() ? std::string("accepted") : added.status().message();
  };
  EXPECT_EQ(message([](auto&) {}), "accepted");
  EXPECT_EQ(message([](auto& r) { r.min_tokens = 1; }), "min_tokens does not go with beam search");
  EXPECT_EQ(message([](auto& r) { r.sampling.num_logprobs = 1; }), "logprobs does not go with beam search");
  EXPECT_EQ(message([](auto& r) { r.sampling.repetition_penalty = 1.1f; }), "repetition_penalty does not go with beam search");
  EXPECT_EQ(message([](auto& r) { r.sampling.mirostat = 2; }), "mirostat does not go with beam search");
  EXPECT_EQ(message([](auto& r) { r.sampling.xtc_probability = 0.5f; }), "xtc_probability does not go with beam search");
  EXPECT_EQ(message([](auto& r) { r.sampling.logit_bias = {{1, 1.0f}}; }), "logit_bias does not go with beam search");
  EXPECT_NE(message([](auto& r) { r.beams->length_penalty = NAN; }), "accepted");
}

// Token for token what transformers' generate(num_beams=...) gives (tools/make_beam_golden.py), on the exact path.
TEST(BeamSearch, IsThatOfTransformers) {
  const auto golden = parse_json(*read_text_file((source_dir() / "tests/golden/beam_search.json").string()));
  ASSERT_TRUE(golden.is_ok()) << golden.status().message();
  std::map<std::string, std::unique_ptr<LoadedModel>> models;
  std::size_t num_cases = 0, num_stopped = 0;
  for (const json::value& item : golden->at("cases").as_array()) {
    const std::string name(item.at("model").as_string());
    if (!models.contains(name)) {
      auto loaded = LoadedModel::load((source_dir() / "tests/golden/models" / name).string(), {.num_threads = 2});
      ASSERT_TRUE(loaded.is_ok()) << loaded.status().message();
      models[name] = std::move(loaded).value();
    }
    auto executor = models[name]->make_executor(GemmPath::kExact, KvDType::kF32, 64);
    ASSERT_TRUE(executor.is_ok()) << executor.status().message();
    EngineOptions options;
    options.kv_bytes = int64_t{16} << 20;
    options.max_running_sequences = 8;
    options.step_tokens_max = 64;
    for (const json::value& id : item.at("eos_token_ids").as_array()) options.eos_token_ids.push_back(static_cast<int32_t>(id.as_int64()));
    auto engine = Engine::create(**executor, nullptr, options);
    ASSERT_TRUE(engine.is_ok()) << engine.status().message();
    GenerationRequest request;
    for (const json::value& id : item.at("ids").as_array()) request.prompt_tokens.push_back(static_cast<int32_t>(id.as_int64()));
    request.n = static_cast<int32_t>(item.at("num_beams").as_int64());
    request.max_tokens = item.at("max_new_tokens").as_int64();
    const json::value& early = item.at("early_stopping");
    request.beams = BeamParams{item.at("length_penalty").to_number<double>(), early.is_string() ? EarlyStopping::kNever
                                                                              : early.as_bool() ? EarlyStopping::kYes
                                                                                                : EarlyStopping::kNo};
    Tokens got(static_cast<std::size_t>(request.n));
    ASSERT_TRUE((*engine)
                    ->add(request, [&](OutputDelta& delta) { got[static_cast<std::size_t>(delta.sequence)] = std::move(delta.token_ids); })
                    .is_ok());
    while ((*engine)->step()) {
    }
    Tokens expected;
    for (const json::value& sequence : item.at("sequences").as_array()) {
      expected.emplace_back();
      for (const json::value& id : sequence.as_array()) expected.back().push_back(static_cast<int32_t>(id.as_int64()));
      num_stopped += static_cast<int64_t>(expected.back().size()) < *request.max_tokens ? 1 : 0;
    }
    EXPECT_EQ(got, expected) << json::serialize(item);
    ++num_cases;
  }
  EXPECT_GT(num_cases, 20u);
  EXPECT_GT(num_stopped, 20u) << "some must end before the limit";
}

}  // namespace
}  // namespace millrace
