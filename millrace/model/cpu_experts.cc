// Mixtures of experts on the CPU: every token chooses some experts, its row is copied to a place among theirs, each expert's matrices run
// over its places at once (cpu_ops.cc, linear), and the results are summed for each token in the order of the experts. Where a row stands
// and what stands beside it changes no bit of it (docs/design.md D5).
#include <algorithm>
#include <cmath>

#include "millrace/kernels/elementwise.h"
#include "millrace/model/cpu_executor.h"

namespace millrace {

std::span<const LinearSegment> CpuExecutor::expert_segments(const Op& op, int64_t expert) const {
  const std::size_t each = op.segments.size() / op.mixture->experts.size();
  return std::span(op.segments).subspan(static_cast<std::size_t>(expert) * each, each);
}

void CpuExecutor::route(const Op& op, int64_t begin, int64_t end) {
  const RoutingRule& rule = op.mixture->rule;
  for (int64_t r = begin; r < end; ++r) {
    const auto first = static_cast<std::size_t>(r * rule.experts_per_token);
    route_row(rule, rows(op.in).row(r), &routed_experts_[first], &routed_weights_[first]);
  }
}

// Counting sort: the places of an expert follow one another, in the order of the tokens.
void CpuExecutor::sort_by_expert(const Op& op) {
  const RoutingRule& rule = op.mixture->rule;
  const auto num_experts = static_cast<std::size_t>(rule.num_experts), count = static_cast<std::size_t>(num_rows_ * rule.experts_per_token);
  std::fill_n(expert_begin_.begin(), num_experts + 1, 0);
  for (std::size_t i = 0; i < count; ++i) ++expert_begin_[static_cast<std::size_t>(routed_experts_[i]) + 1];
  active_experts_.clear();
  for (std::size_t e = 0; e < num_experts; ++e) {
    if (expert_begin_[e + 1] > 0) active_experts_.push_back(static_cast<int32_t>(e));
    expert_begin_[e + 1] += expert_begin_[e];
  }
  for (std::size_t i = 0; i < count; ++i) {
    // Takes the expert's next place; afterwards every entry has become its successor.
    const int32_t place = expert_begin_[static_cast<std::size_t>(routed_experts_[i])]++;
    routed_places_[i] = place;
    place_tokens_[static_cast<std::size_t>(place)] = static_cast<int32_t>(i / static_cast<std::size_t>(rule.experts_per_token));
  }
  std::copy_backward(expert_begin_.begin(), expert_begin_.begin() + static_cast<std::ptrdiff_t>(num_experts),
                     expert_begin_.begin() + static_cast<std::ptrdiff_t>(num_experts) + 1);
  expert_begin_[0] = 0;
}

void CpuExecutor::dispatch(const Op& op, int64_t begin, int64_t end) {
  const Rows& in = rows(op.in);
  Rows& out = rows(op.out);
  const auto copy = [](const AlignedBuffer& from, AlignedBuffer& to, int64_t source, int64_t place, int64_t bytes) {
    std::copy_n(from.data() + source * bytes, bytes, to.data() + place * bytes);
  };
  for (int64_t place = begin; place < end; ++place) {
    const int64_t token = place_tokens_[static_cast<std::size_t>(place)];
    const uint8_t forms = path_of(out, place) == GemmPath::kPrompt ? out.forms.prompt : out.forms.fast;
    const auto wants = [forms](ActivationForm form) { return (forms & static_cast<uint8_t>(form)) != 0; };
    if (wants(ActivationForm::kF32)) copy(in.f32, out.f32, token, place, in.f32_stride * static_cast<int64_t>(sizeof(float)));
    if (wants(ActivationForm::kInt8)) {
      copy(in.codes, out.codes, token, place, in.k_padded);
      copy(in.scales, out.scales, token, place, in.k_padded / 32 * static_cast<int64_t>(sizeof(float)));
      copy(in.sums16, out.sums16, token, place, in.k_padded / 16 * static_cast<int64_t>(sizeof(int16_t)));
    }
    if (wants(ActivationForm::kBf16))
      copy(in.bf16, out.bf16, token, place, bf16_row_stride(in.width) * static_cast<int64_t>(sizeof(uint16_t)));
  }
}

void CpuExecutor::combine(const Op& op, int64_t begin, int64_t end, WorkerScratch& scratch) {
  Rows& in = rows(op.in);
  const Isa isa = options_.isa;
  const int64_t experts_per_token = op.mixture->rule.experts_per_token, size = in.width;
  for (int64_t r = begin; r < end; ++r) {
    float* sum = op.residual < 0 ? rows(op.out).row(r) : scratch.row.as<float>();
    std::fill_n(sum, size, 0.0f);
    for (int64_t i = r * experts_per_token; i < (r + 1) * experts_per_token; ++i) {  // ascending experts
      const auto index = static_cast<std::size_t>(i);
      add_scaled_row(isa, in.row(routed_places_[index]), routed_weights_[index], size, sum);
    }
    if (op.shared >= 0) {
      const float weight = op.shared_gate < 0 ? 1.0f : 1.0f / (1.0f + std::exp(-rows(op.shared_gate).row(r)[op.shared_gate_column]));
      add_scaled_row(isa, rows(op.shared).row(r), weight, size, sum);
    }
    if (op.residual < 0) continue;
    if (op.multiplier != 1.0f) scale_row(isa, sum, op.multiplier, size, sum);
    add_row(isa, sum, size, rows(op.residual).row(r));
  }
}

}  // namespace millrace
