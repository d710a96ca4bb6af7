#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/kernels/gemm.h"
#include "millrace/model/network.h"
#include "millrace/model/step_plan.h"

// Compares a model with a reference file made by the reference implementation (tools/make_reference.py; format: docs/verify.md).
// Both paths of design D4 are judged: the exact one against the reference, the fast one against the exact one's full logits.
namespace millrace {

struct VerifyTolerance {
  float exact_logit = 1e-3f;      // exact path: largest |difference| of a logit, and of a log-probability
  float fast_relative_l2 = 0.0f;  // fast path: ||fast - exact|| / ||exact|| over all positions' logits
  float fast_kl = 0.0f;           // fast path: mean KL(exact || fast) over positions, nats
};

// The stated tolerance of the fast path, by the coarsest activation form that the network's weights use. In a mixture of experts a rounded
// activation can choose another expert where two score nearly the same: few positions differ, but much.
// Where scores are not divided by the root of a head's size (T5), the rounding of a key is that much larger in them.
VerifyTolerance default_tolerance(bool int8_activations, KvDType kv_dtype, bool has_mixture, bool unscaled_scores = false);
bool has_unscaled_scores(const Network& network);

struct VerifyPrompt {
  std::string name;
  int64_t num_tokens = 0;
  // Exact path against the reference.
  double logit_difference = 0, logprob_difference = 0;
  int64_t greedy_equal = 0, greedy_total = 0;  // leading greedy tokens that agree
  // Fast path against the exact path.
  double fast_relative_l2 = 0, fast_kl = 0, fast_top1 = 0;
  int64_t fast_greedy_equal = 0;      // leading greedy tokens that agree with the reference
  double fast_first_margin = 0;       // the reference's margin at the first that does not
  bool fast_greedy_excused = true;    // all equal, or the margin is below the path's error as measured on all prompts
  double fast_logit_error = 0;        // largest |difference| of a logit
  double encoder_difference = 0;      // of an encoder-decoder: largest |difference| of a number of the last hidden state
  std::vector<std::string> failures;  // what is beyond tolerance: first position and size of the difference
};

// The same for an encoder: a text (or a pair) that it reads whole, all of the reference's texts in one step.
struct VerifyText {
  std::string name;
  int64_t num_tokens = 0;
  double difference = 0;        // exact path: largest |difference| of a number that the reference has
  double fast_relative_l2 = 0;  // fast path: of the last hidden state, all tokens
  double fast_cosine = 0;       // fast path: of the output (an embedding, or classes' logits) with the exact path's
  std::vector<std::string> failures;
};

struct VerifyReport {
  std::vector<VerifyPrompt> prompts;  // of a decoder
  std::vector<VerifyText> texts;      // of an encoder
  bool passed() const;
};

using MakeExecutor = std::function<Result<std::unique_ptr<Executor>>(GemmPath path, int32_t max_rows)>;

// `reference` is the parsed file ("kind": "decoder", or the same fields without "kind"; "seq2seq"; "encoder"; "classify"). Errors: the
// model is of another kind, fields missing or of the wrong kind.
Result<VerifyReport> verify_reference(const json::value& reference, const MakeExecutor& make_executor, const VerifyTolerance& tolerance);

}  // namespace millrace
