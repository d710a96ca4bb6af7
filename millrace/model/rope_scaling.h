#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/base/status.h"
#include "millrace/model/network.h"

namespace millrace {

// What the frequencies of a rotary embedding follow from. Everything comes from a file: make_rope() checks it.
struct RopeSettings {
  int64_t rotary_dim = 0;  // even, at least 2
  double theta = 10000;
  int64_t max_positions = 0;                      // of the configuration, before any extension
  std::optional<int64_t> original_max_positions;  // beside the parameters (phi3); counts before the parameters' own field
  const json::object* parameters = nullptr;       // "rope_scaling" or "rope_parameters" of a configuration; null: no scaling
  std::optional<bool> truncate;                   // of yarn: in the place of the parameters' own field
  // Tensors of a GGUF, which take the place of parameters. Empty, or [rotary_dim / 2].
  std::vector<float> frequency_factors;            // divide the frequencies (llama3's scaling, computed by the converter)
  std::vector<float> short_factors, long_factors;  // both: LongRoPE
};

struct ScaledRope {
  Rope rope;                  // `pairing` is the caller's
  int64_t max_positions = 0;  // how far the scaling reaches; at least RopeSettings::max_positions
};

// Inverse frequencies and attention factor in f32, the arithmetic of transformers' modeling_rope_utils. Types: default, linear, dynamic,
// llama3, yarn, longrope ("su"); others are errors that name them.
//   linear    arXiv:2306.15595. Positions are divided by "factor".
//   dynamic   NTK-aware: the base grows with the length. A length must be chosen once for a request (docs/design.md D5), so lengths up to
//             max_positions use the unscaled base, longer ones that for factor * max_positions, the limit of the context.
//   llama3    long waves divided by "factor", short ones kept, a smooth step between.
//   yarn      arXiv:2309.00071. With "attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate".
//   longrope  arXiv:2402.13753. "short_factor" up to the original length, "long_factor" beyond it.
Result<ScaledRope> make_rope(const RopeSettings& settings);

}  // namespace millrace
