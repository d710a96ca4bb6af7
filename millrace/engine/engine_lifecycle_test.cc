#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <thread>

#include "millrace/engine/byte_tokenizer.h"
#include "millrace/engine/engine_fixture.h"

// Requests that come, go, fail and are refused; threads; numbers.
namespace millrace {
namespace {

GenerationRequest simple_request(std::size_t num_prompt_tokens, int64_t max_tokens, uint32_t seed = 1) {
  std::mt19937 random(seed);
  GenerationRequest request;
  request.prompt_tokens = random_tokens(random, num_prompt_tokens);
  request.max_tokens = max_tokens;
  request.seed = seed;
  return request;
}

// A request is cancelled after every number of steps that its life has: queued, in prefill, between chunks, in decode, preempted, done.
TEST(EngineLifecycle, CancelInAnyPhaseFreesItsBlocksAndDisturbsNobody) {
  const FakeNetwork network({std::nullopt, 40});
  const GenerationRequest stranger = simple_request(50, 60, 1);
  const std::vector<int32_t> expected = reference_completion(network, stranger.prompt_tokens, stranger.sampling, stranger.seed, 0, 60);
  std::map<FinishReason, int> reasons;
  for (const int32_t n : {1, 3}) {
    for (int steps = 0; steps < 60; ++steps) {
      EngineOptions options;
      options.step_tokens_max = 40;
      options.max_running_sequences = 3;
      options.kv_bytes = fake_kv_bytes(2 * 13);
      TestEngine test(network, options, nullptr, 400);
      const RequestId stranger_id = test.add(stranger);
      GenerationRequest target = simple_request(130, 30, 2);
      target.n = n;
      const RequestId id = test.add(target);
      for (int i = 0; i < steps; ++i) test.engine->step();
      test.engine->cancel(id);
      test.engine->step();
      ASSERT_TRUE(test.logs[id].finished) << "after " << steps << " steps";
      for (const auto& [index, sequence] : test.logs[id].sequences) ++reasons[*sequence.reason];
      // What is used now is the stranger's: at most its own tokens.
      EXPECT_LE(test.num_used_blocks(), 2 * 4);
      test.run();
      EXPECT_EQ(test.logs[stranger_id].sequences[0].tokens, expected);
      EXPECT_EQ(test.num_used_blocks(), 0);
      EXPECT_EQ(test.engine->metrics().num_live_requests, 0);
    }
  }
  EXPECT_GT(reasons[FinishReason::kAbort], 20);
  EXPECT_GT(reasons[FinishReason::kLength], 20);
}

TEST(EngineLifecycle, ACallbackMayCancelAndAdd) {
  TestEngine test(FakeNetwork({std::nullopt}));
  RequestId id = 0;
  std::optional<FinishReason> reason;
  int num_tokens = 0, num_added = 0;
  const auto added = test.engine->add(simple_request(10, 50), [&](OutputDelta& delta) {
    num_tokens += static_cast<int>(delta.token_ids.size());
    if (delta.finish_reason) reason = delta.finish_reason;
    if (num_tokens == 3 && num_added == 0) {
      test.engine->cancel(id);
      num_added += test.engine->add(simple_request(5, 2), nullptr).is_ok() ? 1 : 0;
    }
  });
  id = *added;
  test.run();
  EXPECT_EQ(num_tokens, 3);
  EXPECT_EQ(reason, FinishReason::kAbort);
  EXPECT_EQ(num_added, 1);
  EXPECT_EQ(test.engine->metrics().generation_tokens, 5);
}

TEST(EngineLifecycle, UnknownAndFinishedIdsMayBeCancelled) {
  TestEngine test(FakeNetwork({std::nullopt}));
  const RequestId id = test.add(simple_request(5, 2));
  test.run();
  test.engine->cancel(id);
  test.engine->cancel(987654);
  test.run();
  EXPECT_EQ(test.logs[id].sequences[0].reason, FinishReason::kLength);
}

TEST(EngineLifecycle, TheQueueIsBounded) {
  EngineOptions options;
  options.max_running_sequences = 1;
  options.max_queued_requests = 3;
  options.max_queued_tokens = 100;
  TestEngine test(FakeNetwork({std::nullopt}), options);
  test.add(simple_request(500, 3));  // alone even a long one is let in
  EXPECT_EQ(test.engine->add(simple_request(1, 1), nullptr).status().code(), StatusCode::kResourceExhausted);
  test.engine->step();  // admitted: no longer in the queue
  test.add(simple_request(60, 3));
  const auto too_many_tokens = test.engine->add(simple_request(41, 3), nullptr);
  EXPECT_EQ(too_many_tokens.status().message(), "60 prompt tokens are waiting and 41 more would pass the limit of 100");
  test.add(simple_request(20, 3));
  const RequestId third = test.add(simple_request(20, 3));
  const auto too_many = test.engine->add(simple_request(1, 3), nullptr);
  EXPECT_EQ(too_many.status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(too_many.status().message(), "3 requests are waiting, the limit is 3");
  test.engine->cancel(third);
  test.engine->step();
  test.add(simple_request(1, 3));
  EXPECT_EQ(test.engine->metrics().num_rejected, 3);
  test.run();
  EXPECT_EQ(test.engine->metrics().num_live_requests, 0);
}

TEST(EngineLifecycle, WrongRequestsAreRefusedWithTheFieldsName) {
  const Tokenizer tokenizer = make_byte_tokenizer();
  EngineOptions options;
  options.kv_bytes = fake_kv_bytes(8);
  FakeExecutor executor(FakeNetwork({std::nullopt}), 1000);
  auto engine = std::move(Engine::create(executor, &tokenizer, options)).value();
  EXPECT_EQ(engine->max_request_tokens(), 256);
  const auto message = [&](const std::function<void(GenerationRequest&)>& spoil) {
    GenerationRequest request = simple_request(10, 5);
    spoil(request);
    const auto added = engine->add(request, nullptr);
    if (added.is_ok()) return std::string("accepted");
    EXPECT_EQ(added.status().code(), StatusCode::kInvalidArgument);
    return added.status().message();
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(message([](auto&) {}), "accepted");
  EXPECT_EQ(message([](auto& r) { r.prompt_tokens.clear(); }), "the prompt is empty, expected at least one token");
  EXPECT_EQ(message([](auto& r) { r.prompt_tokens[3] = 61; }), "the prompt has token 61, expected 0 to 60");
  EXPECT_EQ(message([](auto& r) { r.prompt_tokens[3] = -1; }), "the prompt has token -1, expected 0 to 60");
  EXPECT_EQ(message([](auto& r) { r.prompt_tokens.assign(256, 1); }),
            "the prompt has 256 tokens, and the KV cache (raise kv_bytes for more) holds 256, one token of the answer included");
  EXPECT_EQ(message([](auto& r) { r.prompt_tokens.assign(200, 1), r.max_tokens = 57; }),
            "the prompt has 200 tokens and max_tokens is 57, together more than the 256 that the KV cache (raise kv_bytes for more) holds");
  EXPECT_EQ(message([](auto& r) { r.prompt_tokens.assign(200, 1), r.max_tokens = 56; }), "accepted");
  EXPECT_EQ(message([](auto& r) { r.max_tokens = -1; }), "max_tokens is -1, expected at least 0");
  EXPECT_EQ(message([](auto& r) { r.prompt_tokens.assign(256, 1), r.max_tokens = 0; }), "accepted");
  EXPECT_EQ(message([](auto& r) { r.num_prompt_logprobs = 62; }), "prompt_logprobs is 62, expected at least 0, at most 61");
  EXPECT_EQ(message([](auto& r) { r.timeout = 0; }), "timeout is 0, expected a finite number above 0");
  EXPECT_NE(message([](auto& r) { r.max_tokens = std::numeric_limits<int64_t>::max(); }), "accepted");
  EXPECT_EQ(message([](auto& r) { r.min_tokens = 6; }), "min_tokens is 6, expected at most max_tokens, 5");
  EXPECT_EQ(message([](auto& r) { r.min_tokens = -1; }), "min_tokens is -1, expected at least 0");
  EXPECT_EQ(message([](auto& r) { r.n = 0; }), "n is 0, expected at least 1, at most 8");
  EXPECT_EQ(message([](auto& r) { r.n = 9; }), "n is 9, expected at least 1, at most 8");
  EXPECT_EQ(message([](auto& r) { r.stop = {""}; }), "a stop string is empty");
  EXPECT_EQ(message([](auto& r) { r.stop = {"\x80"}; }), "a stop string is not valid UTF-8");
  EXPECT_EQ(message([](auto& r) { r.stop_token_ids = {61}; }), "stop_token_ids has 61, expected 0 to 60");
  EXPECT_EQ(message([](auto& r) { r.sampling.temperature = -1; }), "temperature is -1, expected at least 0");
  EXPECT_EQ(message([&](auto& r) { r.sampling.temperature = nan; }), "temperature is nan, expected at least 0");
  EXPECT_EQ(message([](auto& r) { r.sampling.top_p = 0; }), "top_p is 0, expected more than 0, at most 1");
  EXPECT_EQ(message([](auto& r) { r.sampling.top_k = -2; }), "top_k is -2, expected at least 1, or 0 or -1 for all");
  EXPECT_EQ(message([](auto& r) { r.sampling.min_p = 2; }), "min_p is 2, expected at least 0, at most 1");
  EXPECT_EQ(message([&](auto& r) { r.sampling.presence_penalty = nan; }), "presence_penalty is nan, expected at least -2, at most 2");
  EXPECT_EQ(message([](auto& r) { r.sampling.frequency_penalty = 3; }), "frequency_penalty is 3, expected at least -2, at most 2");
  EXPECT_EQ(message([](auto& r) { r.sampling.repetition_penalty = 0; }), "repetition_penalty is 0, expected more than 0");
  EXPECT_EQ(message([](auto& r) { r.sampling.typical_p = 0; }), "typical_p is 0, expected more than 0, at most 1");
  EXPECT_EQ(message([&](auto& r) { r.sampling.top_n_sigma = nan; }), "top_n_sigma is nan, expected a finite number");
  EXPECT_EQ(message([](auto& r) { r.sampling.xtc_probability = 1.5f; }), "xtc_probability is 1.5, expected at least 0, at most 1");
  EXPECT_EQ(message([&](auto& r) { r.sampling.xtc_threshold = nan; }), "xtc_threshold is nan, expected at least 0, at most 1");
  EXPECT_EQ(message([](auto& r) { r.sampling.dry_multiplier = -1; }), "dry_multiplier is -1, expected at least 0");
  EXPECT_EQ(message([](auto& r) { r.sampling.dry_base = 0.5f; }), "dry_base is 0.5, expected at least 1");
  EXPECT_EQ(message([](auto& r) { r.sampling.dry_allowed_length = 0; }), "dry_allowed_length is 0, expected at least 1");
  EXPECT_EQ(message([](auto& r) { r.sampling.dry_penalty_last_n = -2; }),
            "dry_penalty_last_n is -2, expected at least 0, or -1 for all tokens");
  EXPECT_EQ(message([](auto& r) { r.sampling.mirostat = 1; }), "mirostat is 1, expected 0 (off) or 2");
  EXPECT_EQ(message([](auto& r) { r.sampling.mirostat_tau = -1; }), "mirostat_tau is -1, expected at least 0");
  EXPECT_EQ(message([](auto& r) { r.sampling.mirostat_eta = 2; }), "mirostat_eta is 2, expected at least 0, at most 1");
  EXPECT_EQ(message([](auto& r) { r.sampling.allowed_token_ids = {1, 61}; }), "allowed_token_ids has 61, expected 0 to 60");
  EXPECT_EQ(message([](auto& r) { r.sampling.bad_words = {{}}; }), "bad_words has an empty word");
  EXPECT_EQ(message([](auto& r) { r.sampling.bad_words = {{1}, {2, -1}}; }), "bad_words has token -1, expected 0 to 60");
  EXPECT_EQ(message([](auto& r) { r.sampling.num_logprobs = 62; }), "logprobs is 62, expected at least 0, at most 61");
  EXPECT_EQ(message([](auto& r) { r.sampling.logit_bias = {{61, 1.0f}}; }), "logit_bias names token 61, expected 0 to 60");
  EXPECT_EQ(message([&](auto& r) { r.sampling.logit_bias = {{6, nan}}; }),
            "logit_bias of token 6 is nan, expected at least -100, at most 100");
}

TEST(EngineLifecycle, WrongOptionsAreRefused) {
  FakeExecutor executor(FakeNetwork({std::nullopt}), 1000);
  const auto code = [&](const std::function<void(EngineOptions&)>& spoil) {
    EngineOptions options;
    spoil(options);
    const auto made = Engine::create(executor, nullptr, options);
    return made.is_ok() ? StatusCode::kOk : made.status().code();
  };
  EXPECT_EQ(code([](auto& o) { o.max_context = 1001; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](auto& o) { o.max_running_sequences = 513; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](auto& o) { o.max_running_sequences = 0; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](auto& o) { o.step_tokens_max = 0; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](auto& o) { o.prefill_chunk_max = 0; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](auto& o) { o.max_queued_requests = 0; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](auto& o) { o.kv_bytes = 1; }), StatusCode::kResourceExhausted);
}

TEST(EngineLifecycle, DrainLetsLiveRequestsFinishAndRefusesNewOnes) {
  TestEngine test(FakeNetwork({std::nullopt}));
  const RequestId id = test.add(simple_request(50, 20));
  test.engine->step();
  EXPECT_TRUE(test.engine->drain(std::chrono::seconds(60)));
  EXPECT_EQ(test.logs[id].sequences[0].reason, FinishReason::kLength);
  EXPECT_EQ(test.engine->add(simple_request(5, 1), nullptr).status().code(), StatusCode::kUnavailable);
}

TEST(EngineLifecycle, DrainAbortsWhatIsLeftAtTheDeadline) {
  TestEngine test(FakeNetwork({std::nullopt}));
  const RequestId running = test.add(simple_request(50, 20)), queued = test.add(simple_request(50, 20));
  test.engine->step();
  EXPECT_FALSE(test.engine->drain(std::chrono::milliseconds(0)));
  EXPECT_EQ(test.logs[running].sequences[0].reason, FinishReason::kAbort);
  EXPECT_EQ(test.logs[queued].sequences[0].reason, FinishReason::kAbort);
  EXPECT_EQ(test.num_used_blocks(), 0);
}

TEST(EngineLifecycle, StoppingTellsEveryClient) {
  TestEngine test(FakeNetwork({std::nullopt}));
  const RequestId seen = test.add(simple_request(50, 20));
  test.engine->step();
  const RequestId unseen = test.add(simple_request(50, 20));
  test.engine.reset();
  EXPECT_EQ(test.logs[seen].sequences[0].reason, FinishReason::kAbort);
  EXPECT_EQ(test.logs[unseen].sequences[0].reason, FinishReason::kAbort);
}

// Two signals in a row: the second stops the engine before the drain of the first has begun. The drain then only waits: what it would
// step belongs to the thread that stops.
TEST(EngineLifecycle, DrainDuringStopOnlyWaits) {
  constexpr int64_t kTokensMax = 200'000;  // more than any machine makes until stop()
  EngineOptions options;
  options.max_running_sequences = 2;
  FakeExecutor executor(FakeNetwork({std::nullopt}), kTokensMax);
  auto engine = std::move(Engine::create(executor, nullptr, options)).value();
  engine->start();
  const std::thread::id stopper = std::this_thread::get_id();
  std::thread drainer;
  std::atomic<int> num_aborted = 0, num_elsewhere = 0;
  for (int i = 0; i < 2; ++i) {
    const auto id = engine->add(simple_request(50, kTokensMax - 50), [&](OutputDelta& delta) {
      if (delta.finish_reason != FinishReason::kAbort) {
        if (drainer.joinable()) ++num_elsewhere;
        return;
      }
      ++num_aborted;
      if (std::this_thread::get_id() != stopper) ++num_elsewhere;
      if (drainer.joinable()) return;
      drainer = std::thread([&] { (void)engine->drain(std::chrono::minutes(1)); });
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    });
    ASSERT_TRUE(id.is_ok());
  }
  engine->stop();
  ASSERT_TRUE(drainer.joinable());
  drainer.join();
  EXPECT_EQ(num_aborted, 2);
  EXPECT_EQ(num_elsewhere, 0);
  EXPECT_EQ(engine->metrics().num_live_requests, 0);
}

// Clients on threads of their own, with cancels at any time, against the engine's thread. Also the subject of the tsan build.
TEST(EngineLifecycle, ManyThreadsMayAddAndCancel) {
  const FakeNetwork network({std::nullopt, 33});
  EngineOptions options;
  options.kv_bytes = fake_kv_bytes(2 * 60);
  FakeExecutor executor(network, 400);
  auto engine = std::move(Engine::create(executor, nullptr, options)).value();
  engine->start();
  std::atomic<int> num_finished = 0, num_whole = 0, num_wrong = 0;
  constexpr int kThreads = 4, kRequests = 60;
  std::vector<std::thread> clients;
  for (int t = 0; t < kThreads; ++t) {
    clients.emplace_back([&, t] {
      std::mt19937 random(static_cast<uint32_t>(t));
      for (int i = 0; i < kRequests; ++i) {
        const GenerationRequest request = simple_request(1 + random() % 100, 1 + static_cast<int64_t>(random() % 30), random());
        auto tokens = std::make_shared<std::vector<int32_t>>();
        const auto id = engine->add(request, [&, request, tokens](OutputDelta& delta) {
          tokens->insert(tokens->end(), delta.token_ids.begin(), delta.token_ids.end());
          if (!delta.request_finished) return;
          ++num_finished;
          auto expected = reference_completion(network, request.prompt_tokens, request.sampling, request.seed, 0, *request.max_tokens);
          if (delta.finish_reason == FinishReason::kLength) ++num_whole;
          if (delta.finish_reason == FinishReason::kAbort) expected.resize(tokens->size());
          if (*tokens != expected) ++num_wrong;
        });
        ASSERT_TRUE(id.is_ok());
        if (random() % 4 == 0) engine->cancel(*id);
        if (random() % 8 == 0) std::this_thread::yield();
        (void)engine->metrics();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(engine->drain(std::chrono::minutes(2)));
  EXPECT_EQ(num_finished, kThreads * kRequests);
  EXPECT_GT(num_whole, 0);
  EXPECT_EQ(num_wrong, 0);
  engine->stop();
  const EngineMetrics metrics = engine->metrics();
  for (const auto& group : metrics.kv_groups) {
    EXPECT_EQ(group.num_used_blocks, 0);
    EXPECT_EQ(group.num_cached_blocks + group.num_free_blocks, group.num_blocks);
  }
  EXPECT_EQ(metrics.finished[static_cast<int>(FinishReason::kLength)], num_whole);
}

TEST(EngineLifecycle, MetricsAgreeWithTheDeltas) {
  double now = 100;
  EngineOptions options;
  options.clock = [&now] { return now; };
  TestEngine test(FakeNetwork({std::nullopt}), options);
  test.add(simple_request(100, 5));
  EXPECT_EQ(test.engine->metrics().num_live_requests, 1);
  now += 0.3;           // in the queue
  test.engine->step();  // prefill and the first token
  EXPECT_EQ(test.engine->metrics().num_running_sequences, 1);
  EXPECT_EQ(test.engine->metrics().kv_groups[0].num_used_blocks, 4);
  EXPECT_GT(test.engine->metrics().kv_usage, 0);
  now += 7;
  EXPECT_DOUBLE_EQ(test.engine->metrics().seconds_since_step, 7);
  for (int i = 0; i < 4; ++i) {
    test.engine->step();
    now += 0.2;
  }
  EXPECT_FALSE(test.engine->step());
  const EngineMetrics metrics = test.engine->metrics();
  EXPECT_EQ(metrics.prompt_tokens, 100);
  EXPECT_EQ(metrics.generation_tokens, 5);
  EXPECT_EQ(metrics.prefill_tokens_computed, 100);
  EXPECT_EQ(metrics.num_steps, 5);
  EXPECT_EQ(metrics.num_live_requests, 0);
  EXPECT_EQ(metrics.num_running_sequences, 0);
  EXPECT_EQ(metrics.seconds_since_step, 0);
  EXPECT_EQ(metrics.finished[static_cast<int>(FinishReason::kLength)], 1);
  EXPECT_EQ(metrics.time_to_first_token.count(), 1);
  EXPECT_NEAR(metrics.time_to_first_token.sum(), 0.3, 1e-9);
  EXPECT_EQ(metrics.inter_token_latency.count(), 4);
  EXPECT_NEAR(metrics.inter_token_latency.sum(), 7 + 3 * 0.2, 1e-9);
  EXPECT_EQ(metrics.request_latency.count(), 1);
  EXPECT_EQ(metrics.queue_time.counts()[4], 1);  // 0.3 is in the bucket up to 0.3
  EXPECT_EQ(metrics.kv_groups[0].num_used_blocks, 0);
  EXPECT_EQ(metrics.prefix_cache_queries, 100);
}

TEST(EngineLifecycle, TheRateFollowsTheWork) {
  DecayingRate rate;
  rate.restart(1000);
  for (int i = 1; i <= 20; ++i) rate.add(1000 + i * 0.1, 5);
  EXPECT_NEAR(rate.per_second(1002), 50, 1);  // from the start on
  EXPECT_LT(rate.per_second(1060), 0.1);
}

TEST(EngineLifecycle, ATimeoutEndsARequestWhereverItIs) {
  double now = 100;
  EngineOptions options;
  options.clock = [&now] { return now; };
  options.max_running_sequences = 1;
  const FakeNetwork network({std::nullopt});
  TestEngine test(network, options);
  GenerationRequest request = simple_request(20, 100);
  request.timeout = 5;
  const RequestId running = test.add(request);
  request.timeout = 3;
  const RequestId queued = test.add(request);
  request.timeout.reset();
  const RequestId patient = test.add(request);
  request.timeout = 1000;
  const RequestId quick = test.add(request);
  for (int i = 0; i < 10; ++i) test.engine->step();
  now = 103;
  test.engine->step();
  EXPECT_EQ(test.logs[queued].sequences[0].reason, FinishReason::kTimeout);
  EXPECT_TRUE(test.logs[queued].finished);
  EXPECT_TRUE(test.logs[queued].sequences[0].tokens.empty());
  EXPECT_FALSE(test.logs[running].finished);
  now = 105;
  test.engine->step();
  EXPECT_EQ(test.logs[running].sequences[0].reason, FinishReason::kTimeout);
  const auto expected = reference_completion(network, request.prompt_tokens, request.sampling, request.seed, 0, 100);
  const std::vector<int32_t>& made = test.logs[running].sequences[0].tokens;
  ASSERT_EQ(made.size(), 11u) << "what was made until then is kept";
  EXPECT_TRUE(std::equal(made.begin(), made.end(), expected.begin()));
  test.run();
  EXPECT_EQ(test.logs[patient].sequences[0].reason, FinishReason::kLength);
  EXPECT_EQ(test.logs[quick].sequences[0].reason, FinishReason::kLength);
  EXPECT_EQ(test.engine->metrics().finished[static_cast<std::size_t>(FinishReason::kTimeout)], 2);
  EXPECT_EQ(test.num_used_blocks(), 0);
}

TEST(EngineLifecycle, ClientsShareNoPrefixes) {
  const FakeNetwork network({std::nullopt});
  TestEngine test(network);
  GenerationRequest request = simple_request(100, 2);
  std::vector<int64_t> cached;
  for (const int32_t client : {0, 0, 1, 2, 1, 2, 0}) {
    request.client = client;
    const RequestId id = test.add(request);
    test.run();
    cached.push_back(test.logs[id].usage.cached_tokens);
  }
  EXPECT_EQ(cached, (std::vector<int64_t>{0, 96, 0, 0, 96, 96, 96}));
}

TEST(EngineLifecycle, StopStringsEndTheTextInsideTheEngine) {
  const Tokenizer tokenizer = make_byte_tokenizer();
  const FakeNetwork network({std::nullopt}, 128);  // ASCII
  TestEngine test(network, {}, &tokenizer);
  GenerationRequest request;
  request.prompt_tokens = {'a', 'b'};
  request.max_tokens = 80;
  request.seed = 21;
  const RequestId free_run = test.add(request);
  test.run();
  const std::string text = test.logs[free_run].text_of(0);
  ASSERT_EQ(text.size(), 80u);
  request.stop = {text.substr(40, 3)};
  const RequestId stopped = test.add(request);
  test.run();
  EXPECT_EQ(test.logs[stopped].text_of(0), text.substr(0, text.find(request.stop[0])));
  EXPECT_EQ(test.logs[stopped].sequences[0].reason, FinishReason::kStop);
  EXPECT_EQ(test.num_used_blocks(), 0);
}

}  // namespace
}  // namespace millrace
