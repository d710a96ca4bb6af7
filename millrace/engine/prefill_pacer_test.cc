#include "millrace/engine/prefill_pacer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <vector>

#include "millrace/engine/engine_fixture.h"

namespace millrace {
namespace {

// What a step takes on an imagined machine: reading the weights once, something for each row, and more for rows far into a context.
struct Machine {
  double weights = 0.020, decode_row = 0.001, prompt_row = 0.0005, context_token = 0;
  double again = 0;     // for reading the weights once more where there are rows of both kinds
  double noise = 0;     // of a step, up and down
  int64_t tile = 1;     // rows of prompts are computed in tiles of so many
  int64_t context = 0;  // tokens of the prompt so far
  std::mt19937 random{1};

  double seconds(int64_t decode_rows, int64_t prompt_rows) {
    const double tiles = static_cast<double>((prompt_rows + tile - 1) / tile * tile);
    const double exact = weights + (decode_rows > 0 && prompt_rows > 0 ? again : 0) + decode_row * static_cast<double>(decode_rows) +
                         tiles * (prompt_row + context_token * static_cast<double>(context));
    context += prompt_rows;
    return exact * (1 + noise * (static_cast<double>(random() % 2001) / 1000 - 1));
  }
};

struct Outcome {
  std::vector<double> seconds;  // of the steps with prompts
  double rate = 0;              // prompt rows a second
};

// Some decodes alone, then beside a long prompt.
Outcome run(PrefillPacer& pacer, Machine& machine, int64_t decode_rows, int num_steps) {
  for (int i = 0; i < 20; ++i) pacer.observe(decode_rows, 0, machine.seconds(decode_rows, 0));
  Outcome outcome;
  double all_seconds = 0, all_rows = 0;
  for (int i = 0; i < num_steps; ++i) {
    const int64_t rows = pacer.rows(decode_rows);
    const double seconds = machine.seconds(decode_rows, rows);
    pacer.observe(decode_rows, rows, seconds);
    outcome.seconds.push_back(seconds);
    all_seconds += seconds;
    all_rows += static_cast<double>(rows);
  }
  outcome.rate = all_rows / all_seconds;
  return outcome;
}

double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(share * static_cast<double>(values.size() - 1))];
}

TEST(PrefillPacer, MeetsTheTargetOnEveryKindOfMachine) {
  struct Case {
    const char* name;
    Machine machine;
    double target;
    int64_t decode_rows;
  };
  const std::vector<Case> cases = {
      {"plain", {}, 0.060, 4},
      {"tight", {}, 0.034, 4},
      {"many decodes", {}, 0.200, 60},
      {"more decodes than are remembered", {.decode_row = 0.0001}, 0.150, 200},
      {"noisy", {.noise = 0.2}, 0.080, 4},
      {"tiles", {.tile = 16}, 0.060, 4},
      {"attention over a growing context", {.context_token = 2e-8}, 0.060, 4},
      {"slow rows", {.weights = 0.5, .prompt_row = 0.05}, 1.0, 2},
      {"fast rows", {.weights = 0.005, .prompt_row = 1e-5}, 0.020, 2},
      {"weights read twice", {.again = 0.018}, 0.060, 4},
  };
  for (Case c : cases) {
    SCOPED_TRACE(c.name);
    PrefillPacer pacer(c.target, 1 << 20);
    const Outcome outcome = run(pacer, c.machine, c.decode_rows, 300);
    const double slack = 1 + 2.5 * c.machine.noise + (c.machine.tile > 1 ? 0.25 : 0.05);
    EXPECT_LT(quantile(outcome.seconds, 0.99), c.target * slack);
    EXPECT_GT(quantile(outcome.seconds, 0.5), c.target * (c.decode_rows > 128 ? 0.75 : 0.85)) << "the time there is is used";
  }
}

TEST(PrefillPacer, APromptKeepsAQuarterOfItsRateWhereTheTargetCannotBeMet) {
  for (const double target : {0.001, 0.022, 0.028}) {  // decodes alone take 0.024
    Machine machine;
    PrefillPacer pacer(target, 512);
    const Outcome outcome = run(pacer, machine, 4, 200);
    const double alone = 1 / machine.prompt_row;
    EXPECT_GT(outcome.rate, 0.24 * alone) << target;
    EXPECT_LT(quantile(outcome.seconds, 0.99), std::max(target, 0.024 * 4 / 3) * 1.1) << target;
  }
}

TEST(PrefillPacer, APromptKeepsAQuarterOfItsRateWhereTheWeightsAreReadTwice) {
  for (const double target : {0.001, 0.028, 0.045}) {  // decodes alone take 0.024, and with a row of a prompt 0.044
    for (const double noise : {0.0, 0.1}) {
      Machine machine{.again = 0.020, .noise = noise};
      PrefillPacer pacer(target, 512);
      run(pacer, machine, 4, 40);  // finds the line
      const Outcome outcome = run(pacer, machine, 4, 300);
      const double alone = 1 / machine.prompt_row;
      EXPECT_GT(outcome.rate, (noise > 0 ? 0.20 : 0.24) * alone) << target << " with noise " << noise;
      EXPECT_LT(quantile(outcome.seconds, 0.5), 0.044 * 4 / 3 * (1.1 + noise)) << target << " with noise " << noise;
      EXPECT_LT(quantile(outcome.seconds, 0.99), 0.044 * 4 / 3 * (1.1 + 8 * noise)) << target << " with noise " << noise;
    }
  }
}

TEST(PrefillPacer, FollowsAMachineThatChanges) {
  Machine machine;
  PrefillPacer pacer(0.060, 4096);
  run(pacer, machine, 4, 100);
  machine.prompt_row *= 5;  // somebody else computes, too
  const Outcome slower = run(pacer, machine, 4, 100);
  EXPECT_LT(quantile(slower.seconds, 0.9), 0.060 * 1.1);
  machine.prompt_row /= 20;
  const Outcome faster = run(pacer, machine, 4, 100);
  EXPECT_LT(quantile(faster.seconds, 0.99), 0.060 * 1.1);
  EXPECT_GT(quantile(faster.seconds, 0.5), 0.060 * 0.85);
}

TEST(PrefillPacer, OneSlowStepChangesLittle) {
  Machine machine;
  PrefillPacer pacer(0.060, 4096);
  run(pacer, machine, 4, 50);
  const int64_t before = pacer.rows(4);
  pacer.observe(4, before, 3.0);  // the process was stopped
  EXPECT_GE(pacer.rows(4), before * 9 / 10);
}

TEST(PrefillPacer, NobodyWhoDecodesNoLimit) {
  PrefillPacer pacer(0.001, 512);
  EXPECT_EQ(pacer.rows(0), 512);
  pacer.observe(0, 512, 5.0);
  EXPECT_EQ(pacer.rows(0), 512);
  EXPECT_GE(pacer.rows(1), 1);
}

TEST(PrefillPacer, AClockThatStandsStillLimitsNothing) {
  PrefillPacer pacer(0.05, 512);
  for (int i = 0; i < 50; ++i) pacer.observe(2, pacer.rows(2), 0);
  EXPECT_EQ(pacer.rows(2), 512);
}

// The fake network on the imagined machine.
class TimedExecutor : public FakeExecutor {
 public:
  TimedExecutor(FakeNetwork network, double& now) : FakeExecutor(std::move(network), 8192), now_(now) {}
  void enqueue(const StepPlan& plan) override {
    FakeExecutor::enqueue(plan);
    int64_t decode_rows = 0, prompt_rows = 0;
    for (const StepPlan::Sequence& sequence : plan.sequences)
      (sequence.first_position >= sequence.num_prompt_tokens ? decode_rows : prompt_rows) += sequence.row_end - sequence.row_begin;
    now_ += machine_.seconds(decode_rows, prompt_rows);
  }

 private:
  double& now_;
  Machine machine_;
};

struct Served {
  std::vector<double> gaps;                       // between tokens of the streams, while the long prompt is computed
  double prompt_seconds = 0;                      // until its first token
  std::vector<std::vector<int32_t>> completions;  // of all
};

Served serve_beside_a_long_prompt(double target_seconds, int num_streams) {
  double now = 0;
  TimedExecutor executor(FakeNetwork({std::nullopt}), now);
  EngineOptions options;
  options.clock = [&now] { return now; };
  options.tpot_target_seconds = target_seconds;
  auto engine = Engine::create(executor, nullptr, options);
  MR_CHECK(engine.is_ok(), "an engine");
  std::mt19937 random(3);
  Served served;
  served.completions.resize(static_cast<std::size_t>(num_streams) + 1);
  std::vector<double> last(static_cast<std::size_t>(num_streams), 0);
  bool computing = false;
  for (int s = 0; s < num_streams; ++s) {
    GenerationRequest request;
    request.prompt_tokens = random_tokens(random, 10);
    request.max_tokens = 700;
    const auto index = static_cast<std::size_t>(s);
    MR_CHECK((*engine)
                 ->add(request,
                       [&, index](OutputDelta& delta) {
                         if (computing) served.gaps.push_back(now - last[index]);
                         last[index] = now;
                         std::vector<int32_t>& tokens = served.completions[index];
                         tokens.insert(tokens.end(), delta.token_ids.begin(), delta.token_ids.end());
                       })
                 .is_ok(),
             "a stream");
  }
  for (int i = 0; i < 50; ++i) (*engine)->step();
  GenerationRequest request;
  request.prompt_tokens = random_tokens(random, 6000);
  request.max_tokens = 3;
  computing = true;
  const double begun = now;
  MR_CHECK((*engine)
               ->add(request,
                     [&](OutputDelta& delta) {
                       if (computing) served.prompt_seconds = now - begun;
                       computing = false;
                       served.completions.back().insert(served.completions.back().end(), delta.token_ids.begin(), delta.token_ids.end());
                     })
               .is_ok(),
           "a prompt");
  while ((*engine)->step()) {
  }
  return served;
}

TEST(PrefillPacer, StreamsStayFastBesideALongPromptInTheEngine) {
  const Served free = serve_beside_a_long_prompt(0, 4), alone = serve_beside_a_long_prompt(0, 0),
               paced = serve_beside_a_long_prompt(0.045, 4);
  EXPECT_GT(quantile(free.gaps, 0.5), 0.2) << "without a target the prompt takes the whole step";
  EXPECT_LT(quantile(paced.gaps, 0.99), 0.045 * 1.1);
  EXPECT_LT(paced.prompt_seconds, 4 * alone.prompt_seconds);
  EXPECT_EQ(paced.completions, free.completions) << "the target moves work, and changes no token";
}

}  // namespace
}  // namespace millrace
