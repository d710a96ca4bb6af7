#include "millrace/kernels/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "millrace/base/aligned_buffer.h"
#include "millrace/kernels/attention_ref.h"
#include "millrace/tensor/half.h"

namespace millrace {
namespace {

constexpr KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kBf16, KvFormat::kInt8, KvFormat::kFp8E4M3, KvFormat::kInt4};
const char* name_of(KvFormat format) {
  switch (format) {
    case KvFormat::kF32: return "f32";
    case KvFormat::kBf16: return "bf16";
    case KvFormat::kInt8: return "int8";
    case KvFormat::kFp8E4M3: return "fp8";
    case KvFormat::kInt4: return "int4";
  }
  return "unknown";
}
bool has_scales(KvFormat format) { return format != KvFormat::kF32 && format != KvFormat::kBf16; }

// The number of E4M3 nearest to |x| <= 448, found by looking at all of them but the subnormal ones; of two the one with an even code.
float nearest_e4m3(float x) {
  float best = 0;
  int best_code = 0;
  for (int code = 8; code <= 0x7e; ++code) {
    const float value = std::ldexp(static_cast<float>(8 + code % 8), code / 8 - 10);
    const float better_by = std::abs(std::abs(x) - best) - std::abs(std::abs(x) - value);
    if (better_by > 0 || (better_by == 0 && code % 2 == 0 && best_code % 2 != 0)) best = value, best_code = code;
  }
  return std::copysign(best, x);
}

// From one number to the next, relative to values of deviation 1, of which the largest of head_dim is `largest` on average.
double relative_step(KvFormat format, int64_t head_dim) {
  const double largest = head_dim == 64 ? 2.6 : 2.8;
  // Floating-point numbers' steps are proportional to the power of two below the value: 0.46 of the value in the mean square.
  const double floating = std::sqrt(0.46);
  switch (format) {
    case KvFormat::kF32: return 0;
    case KvFormat::kBf16: return 0x1p-7 * floating;
    case KvFormat::kInt8: return largest / 127;
    case KvFormat::kFp8E4M3: return 0x1p-3 * floating;
    case KvFormat::kInt4: return (head_dim == 64 ? 4.7 : 5.2) / 15;  // from the smallest to the largest
  }
  return 0;
}

float to_bf16(float x) { return bf16_to_f32(f32_to_bf16(x)); }

// The nearest of 16 steps about the middle of [least, most], whose size and middle are bf16; of two the higher.
float nearest_int4(float x, float least, float most) {
  const float scale = to_bf16((most - least) / 15.0f), centre = to_bf16((least + most) / 2.0f);
  float best = centre - 7.5f * scale;
  for (int code = 1; code <= 15; ++code) {
    const float value = centre + scale * (static_cast<float>(code) - 7.5f);
    if (std::abs(double{x} - value) <= std::abs(double{x} - best)) best = value;
  }
  return best;
}

// x as one of a head's `values`.
float round_to_format(KvFormat format, float x, std::span<const float> values) {
  float largest = 0;
  for (float value : values) largest = std::max(largest, std::abs(value));
  switch (format) {
    case KvFormat::kF32: return x;
    case KvFormat::kBf16: return to_bf16(x);
    case KvFormat::kInt8: return static_cast<float>(std::lrint(x / (largest / 127.0f))) * (largest / 127.0f);
    case KvFormat::kFp8E4M3: return nearest_e4m3(x / (largest / 448.0f)) * (largest / 448.0f);
    case KvFormat::kInt4: return nearest_int4(x, *std::ranges::min_element(values), *std::ranges::max_element(values));
  }
  return x;
}

std::vector<Isa> runnable_isas() {
  std::vector<Isa> isas;
  for (Isa isa : kAllIsas) {
    if (isa_runnable(isa)) isas.push_back(isa);
  }
  return isas;
}

struct Shape {
  KvFormat format;
  int64_t num_heads, num_kv_heads, head_dim, num_rows, first_position;
  std::optional<float> softcap = std::nullopt;
  std::optional<int64_t> window = std::nullopt;
  bool alibi = false;
  bool sinks = false;
  bool two_way = false;
  std::optional<int64_t> relative_reach = std::nullopt;
};

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  out << name_of(s.format) << " heads " << s.num_heads << "/" << s.num_kv_heads << " head_dim " << s.head_dim << " rows " << s.num_rows
      << " from " << s.first_position;
  if (s.softcap) out << " softcap " << *s.softcap;
  if (s.window) out << " window " << *s.window;
  return out << (s.alibi ? " alibi" : "") << (s.sinks ? " sinks" : "") << (s.two_way ? " both directions" : "")
             << (s.relative_reach ? " biases to distance " + std::to_string(*s.relative_reach) : "");
}

// A sequence in blocks scattered over a pool in which all that the sequence did not write is poison: NaN in every format's values or
// scales. Blocks that no row's window reaches are -1 in the table.
class Sequence {
 public:
  explicit Sequence(const Shape& shape, uint32_t seed = 1) : shape_(shape) {
    const int64_t num_tokens = shape.first_position + shape.num_rows, num_blocks = (num_tokens + kBlockTokens - 1) / kBlockTokens;
    kv_.geometry = {shape.format, shape.num_kv_heads, shape.head_dim};
    kv_.block_stride = kv_.geometry.layer_bytes() + 128;
    memory_ = AlignedBuffer(static_cast<std::size_t>((num_blocks + 3) * kv_.block_stride));
    kv_.base = memory_.data();
    std::memset(memory_.data(), 0xff, memory_.size());
    for (int64_t b = 0; b < num_blocks; ++b) blocks_.push_back(static_cast<int32_t>((b * 7 + 1) % num_blocks + 1));
    if (std::gcd(num_blocks, int64_t{7}) != 1) std::iota(blocks_.rbegin(), blocks_.rend(), 1);
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const int64_t first_seen = shape.window ? std::max<int64_t>(0, shape.first_position - *shape.window + 1) : 0;
    std::vector<float> k(static_cast<std::size_t>(shape.head_dim)), v(k);
    for (int64_t t = 0; t < num_tokens; ++t) {
      for (int64_t h = 0; h < shape.num_kv_heads; ++h) {
        for (float& x : k) x = normal(random);
        for (float& x : v) x = normal(random);
        if (t >= first_seen)
          kv_write(Isa::kScalar, kv_, blocks_[static_cast<std::size_t>(t / kBlockTokens)], t % kBlockTokens, h, k.data(), v.data());
      }
    }
    for (int64_t b = 0; b < first_seen / kBlockTokens; ++b) blocks_[static_cast<std::size_t>(b)] = -1;
    q_.resize(static_cast<std::size_t>(shape.num_rows * q_stride()));
    for (float& x : q_) x = normal(random);
    // Sinks below, among and far above the scores.
    for (int64_t h = 0; h < shape.num_heads; ++h) sinks_.push_back(static_cast<float>(h * h) - 3.0f);
    for (int64_t h = 0; h < shape.num_heads; ++h)
      slopes_.push_back(std::exp2(-8.0f * static_cast<float>(h + 1) / static_cast<float>(shape.num_heads)));
    if (shape.relative_reach) biases_.resize(static_cast<std::size_t>(shape.num_heads * (2 * *shape.relative_reach + 1)));
    for (float& x : biases_) x = 2 * normal(random);
  }

  int64_t q_stride() const { return shape_.num_heads * shape_.head_dim + 5; }
  int64_t out_stride() const { return shape_.num_heads * shape_.head_dim + 3; }
  const KvView& kv() const { return kv_; }

  AttentionArgs args(float* out) const {
    AttentionArgs args;
    args.q = q_.data();
    args.q_stride = q_stride();
    args.out = out;
    args.out_stride = out_stride();
    args.num_rows = shape_.num_rows;
    args.num_heads = shape_.num_heads;
    args.first_position = shape_.first_position;
    args.blocks = blocks_;
    args.scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
    args.softcap = shape_.softcap;
    args.window = shape_.window;
    if (shape_.two_way) args.num_keys = shape_.first_position + shape_.num_rows;
    args.alibi_slopes = shape_.alibi ? slopes_.data() : nullptr;
    args.relative_bias = shape_.relative_reach ? biases_.data() : nullptr;
    args.relative_reach = shape_.relative_reach.value_or(0);
    args.sinks = shape_.sinks ? sinks_.data() : nullptr;
    return args;
  }

  std::vector<float> scratch() const {
    return std::vector<float>(static_cast<std::size_t>(attention_scratch_floats(kv_.geometry, shape_.num_heads)), std::nanf(""));
  }
  std::vector<float> empty_out() const { return std::vector<float>(static_cast<std::size_t>(shape_.num_rows * out_stride()), -77.0f); }

  // All rows, in calls of at most `rows_per_call`.
  std::vector<float> run(Isa isa, int64_t rows_per_call) const {
    std::vector<float> out = empty_out(), memory = scratch();
    for (int64_t row = 0; row < shape_.num_rows; row += rows_per_call) {
      for (int64_t h = 0; h < shape_.num_kv_heads; ++h) {
        attention(isa, kv_, args(out.data()), row, std::min(row + rows_per_call, shape_.num_rows), h, memory.data());
      }
    }
    return out;
  }

  // Every row as decode: a call that knows only this row and the blocks it needs.
  std::vector<float> run_alone(Isa isa) const {
    std::vector<float> out = empty_out(), memory = scratch();
    for (int64_t row = 0; row < shape_.num_rows; ++row) {
      AttentionArgs alone = args(out.data() + row * out_stride());
      alone.q += row * q_stride();
      alone.num_rows = 1;
      alone.first_position += row;
      if (!shape_.two_way) alone.blocks = alone.blocks.first(static_cast<std::size_t>(alone.first_position / kBlockTokens + 1));
      for (int64_t h = 0; h < shape_.num_kv_heads; ++h) attention(isa, kv_, alone, 0, 1, h, memory.data());
    }
    return out;
  }

  std::vector<float> run_in_segments(Isa isa) const {
    std::vector<float> out = empty_out(), memory = scratch();
    const AttentionArgs all = args(out.data());
    const int64_t group_size = shape_.num_heads / shape_.num_kv_heads, partial_size = group_size * (shape_.head_dim + 2);
    for (int64_t row = 0; row < shape_.num_rows; ++row) {
      const int64_t num_segments = attention_num_segments(all, row);
      std::vector<float> partials(static_cast<std::size_t>(num_segments * partial_size));
      for (int64_t h = 0; h < shape_.num_kv_heads; ++h) {
        for (int64_t s = num_segments - 1; s >= 0; --s)
          attention_partial(isa, kv_, all, row, h, s, partials.data() + s * partial_size, memory.data());
        attention_merge(isa, kv_, all, row, h, partials.data(), num_segments);
      }
    }
    return out;
  }

  // Rounding: a score of magnitude |s| <= sum |q k| scale errs by about head_dim * eps * that, the exponentials by as much relative to
  // themselves plus 2 ulp; weighted values by num_keys' chain (at most 512 a segment) on top. All relative to the largest |v|, about 4.5.
  double tolerance(Isa isa) const {
    const double eps = 6e-8, score_error = eps * static_cast<double>(shape_.head_dim) * 3.0 + 4 * eps * (shape_.alibi ? 100 : 10);
    const double f32_error = 4.5 * (2 * score_error + 64 * eps);
    // AMX rounds queries and probabilities to bf16, by 2^-9 at most: a score of unit deviation by a third of that, three deviations of
    // which are 2^-9 again; over a sum of values of 2 at most.
    if (shape_.format == KvFormat::kBf16 && isa == Isa::kAmx) return f32_error + 2 * (0x1p-9 + 0x1p-9);
    if (shape_.format != KvFormat::kInt8 && shape_.format != KvFormat::kInt4) return f32_error;
    // Half a step of the largest value of a query (about 4) is 4 / 64000, a third of which remains of it in a score of sqrt(head_dim)
    // roundings; three deviations of that. Probabilities err by half a step of 1 / 32000 each.
    return f32_error + 4.5 * (2 * 3 * 4.0 / 64000 / 1.7 + 3.0 / 64000);
  }

  void expect_near_reference(Isa isa, const std::vector<float>& out) const {
    std::vector<float> unused = out;
    const AttentionArgs all = args(unused.data());
    std::vector<double> want(static_cast<std::size_t>(shape_.head_dim));
    double worst = 0;
    // Every row of short calls, a sample of long ones; first and last always.
    const int64_t step = std::max<int64_t>(1, shape_.num_rows / 40);
    for (int64_t r = 0; r < shape_.num_rows + step - 1; r += step) {
      const int64_t row = std::min(r, shape_.num_rows - 1);
      for (int64_t head = 0; head < shape_.num_heads; ++head) {
        attention_ref(kv_, all, row, head, want.data());
        for (int64_t d = 0; d < shape_.head_dim; ++d) {
          const double got = out[static_cast<std::size_t>(row * out_stride() + head * shape_.head_dim + d)];
          ASSERT_FALSE(std::isnan(got)) << "row " << row << " head " << head << " dim " << d;
          worst = std::max(worst, std::abs(got - want[static_cast<std::size_t>(d)]));
        }
      }
      for (int64_t i = shape_.num_heads * shape_.head_dim; i < out_stride(); ++i) {
        ASSERT_EQ(out[static_cast<std::size_t>(row * out_stride() + i)], -77.0f) << "wrote beyond the heads";
      }
    }
    EXPECT_LT(worst, tolerance(isa));
  }

 private:
  Shape shape_;
  AlignedBuffer memory_;
  KvView kv_;
  std::vector<int32_t> blocks_;
  std::vector<float> q_, slopes_, sinks_, biases_;
};

void expect_same_bits(const std::vector<float>& a, const std::vector<float>& b, const char* what) {
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0) << what;
}

std::vector<Shape> shapes(KvFormat f) {
  return {
      {f, 9, 3, 64, 40, 0},        // SmolLM2: a short prompt
      {f, 9, 3, 64, 1, 0},         // the first token alone
      {f, 9, 3, 64, 1, 31},        // a block just full
      {f, 9, 3, 64, 3, 510},       // across a segment's border
      {f, 4, 4, 16, 70, 5},        // no groups, small heads
      {f, 4, 1, 24, 33, 100},      // one kv head
      {f, 8, 2, 80, 9, 60},        // dimensions that fill no vector
      {f, 32, 1, 96, 3, 40},       // a group as large as a tile
      {f, 71, 1, 64, 2, 33},       // and larger: Falcon
      {f, 6, 3, 128, 11, 500},     //
      {f, 2, 1, 256, 6, 64},       // Gemma
      {f, 2, 2, 1, 5, 30},         // the limits of head_dim
      {f, 1, 1, 512, 2, 20},       //
      {f, 5, 5, 7, 20, 31},        // nothing divides anything
      {f, 9, 3, 64, 20, 1290},     // long
      {f, 4, 2, 32, 3, 3000},      //
      {f, 4, 2, 64, 70, 0, 5.0f},  // softcap
      {f, 4, 2, 64, 40, 1000, 30.0f, 33},
      {f, 4, 2, 64, 70, 0, std::nullopt, 1},  // sees itself only
      {f, 4, 2, 64, 100, 0, std::nullopt, 31},
      {f, 4, 2, 64, 100, 500, std::nullopt, 32},
      {f, 4, 1, 64, 50, 1000, std::nullopt, 600},  // a window over three segments
      {f, 4, 1, 64, 2, 1500, std::nullopt, 5000},
      {f, 8, 8, 64, 50, 0, std::nullopt, std::nullopt, true},  // BLOOM
      {f, 12, 12, 32, 4, 1400, std::nullopt, std::nullopt, true},
      {f, 4, 2, 40, 20, 700, 10.0f, 300, true},
      {f, 8, 2, 64, 40, 0, std::nullopt, std::nullopt, false, true},  // gpt-oss
      {f, 8, 1, 64, 3, 1290, std::nullopt, 128, false, true},
      {f, 6, 3, 24, 1, 0, std::nullopt, std::nullopt, false, true},
      {f, 12, 12, 32, 40, 0, std::nullopt, std::nullopt, false, false, true},  // MiniLM: a text read in both directions
      {f, 4, 4, 16, 1, 0, std::nullopt, std::nullopt, false, false, true},     // of one token
      {f, 4, 4, 16, 33, 0, std::nullopt, std::nullopt, false, false, true},    // one more than a block
      {f, 3, 1, 24, 520, 0, std::nullopt, std::nullopt, false, false, true},   // over a segment's border
      {f, 2, 2, 64, 70, 0, std::nullopt, 1, false, false, true},               // sees itself only
      {f, 2, 2, 64, 100, 0, std::nullopt, 17, false, false, true},             // a window on both sides, as ModernBERT's
      {f, 2, 1, 32, 600, 0, std::nullopt, 65, false, false, true},
      {f, 2, 1, 32, 90, 0, std::nullopt, 500, false, false, true},  // wider than the text
      {f, 4, 2, 40, 60, 0, 10.0f, 30, true, false, true},
      {f, 12, 12, 32, 40, 0, std::nullopt, std::nullopt, false, false, true, 128},   // MPNet, T5: no distance is beyond the biases
      {f, 4, 4, 16, 530, 0, std::nullopt, std::nullopt, false, false, true, 128},    // all of them, and further keys on both sides
      {f, 3, 1, 24, 45, 0, std::nullopt, std::nullopt, false, false, true, 3},       // fewer than lanes
      {f, 4, 2, 32, 9, 0, std::nullopt, std::nullopt, false, false, true, 0},        // one for all
      {f, 4, 4, 16, 70, 500, std::nullopt, std::nullopt, false, false, false, 128},  // T5's decoder
      {f, 8, 2, 64, 1, 1290, 9.0f, 600, false, true, false, 33},
  };
}

class AttentionFormats : public testing::TestWithParam<KvFormat> {};

TEST_P(AttentionFormats, EveryVariantMatchesDenseReference) {
  for (const Shape& shape : shapes(GetParam())) {
    const Sequence sequence(shape);
    for (Isa isa : runnable_isas()) {
      SCOPED_TRACE(testing::Message() << isa_name(isa) << " " << shape);
      sequence.expect_near_reference(isa, sequence.run(isa, shape.num_rows));
    }
  }
}

// What rounding keys and values costs, as the format's step foretells: of independent errors of relative size e, a weighted sum of values
// keeps e, and the weights err by e times a score's deviation, which is 1 here, so that both together are sqrt(2) e.
TEST_P(AttentionFormats, RoundingCostsWhatItsStepsForetell) {
  if (GetParam() == KvFormat::kF32) GTEST_SKIP() << "f32 is not rounded";
  for (int64_t head_dim : {64, 128}) {
    const Shape shape{GetParam(), 8, 2, head_dim, 24, 600}, unrounded{KvFormat::kF32, 8, 2, head_dim, 24, 600};
    const Sequence sequence(shape), judge(unrounded);
    std::vector<float> unused = judge.empty_out();
    const AttentionArgs args = judge.args(unused.data());
    for (Isa isa : runnable_isas()) {
      const std::vector<float> out = sequence.run(isa, shape.num_rows);
      std::vector<double> want(static_cast<std::size_t>(head_dim));
      double error = 0, size = 0;
      for (int64_t row = 0; row < shape.num_rows; ++row) {
        for (int64_t head = 0; head < shape.num_heads; ++head) {
          attention_ref(judge.kv(), args, row, head, want.data());
          for (int64_t d = 0; d < head_dim; ++d) {
            const double x = want[static_cast<std::size_t>(d)];
            error += std::pow(out[static_cast<std::size_t>(row * judge.out_stride() + head * head_dim + d)] - x, 2);
            size += x * x;
          }
        }
      }
      // AMX rounds queries and probabilities to bf16, too.
      const double roundings = GetParam() == KvFormat::kBf16 && isa == Isa::kAmx ? 4 : 2;
      const double foretold = std::sqrt(roundings) * relative_step(GetParam(), head_dim) / std::sqrt(12);
      EXPECT_LT(std::sqrt(error / size), 1.3 * foretold) << isa_name(isa);
      EXPECT_GT(std::sqrt(error / size), 0.7 * foretold) << isa_name(isa);
    }
  }
}

TEST_P(AttentionFormats, RowDoesNotDependOnCompanyOrSplit) {
  for (const Shape& shape : shapes(GetParam())) {
    const Sequence sequence(shape);
    for (Isa isa : runnable_isas()) {
      SCOPED_TRACE(testing::Message() << isa_name(isa) << " " << shape);
      const std::vector<float> whole = sequence.run(isa, shape.num_rows);
      expect_same_bits(whole, sequence.run_alone(isa), "row by row");
      expect_same_bits(whole, sequence.run_in_segments(isa), "segment by segment");
      for (int64_t rows_per_call : {1, 2, 5, 32, 33}) expect_same_bits(whole, sequence.run(isa, rows_per_call), "in calls of a few rows");
    }
  }
}

TEST_P(AttentionFormats, EveryLevelWritesTheSameBits) {
  for (const int64_t head_dim : {5, 32, 64, 80, 128}) {
    const KvGeometry geometry{GetParam(), 2, head_dim};
    std::mt19937 random(7);
    std::normal_distribution<float> normal(0.0f, 2.0f);
    std::vector<std::vector<float>> tokens(static_cast<std::size_t>(kBlockTokens));
    for (auto& values : tokens) {
      values.resize(static_cast<std::size_t>(2 * head_dim));
      for (float& x : values) x = normal(random);
    }
    tokens[3][1] = NAN;
    tokens[4][2] = -INFINITY;
    tokens[5][3] = 1e-41f;
    tokens[6][4] = std::bit_cast<float>(0x3f808000u);  // in the middle, the even one below
    tokens[7][4] = std::bit_cast<float>(0x3f818000u);
    const auto written = [&](Isa isa) {
      std::vector<std::byte> memory(static_cast<std::size_t>(geometry.layer_bytes()), std::byte{0x5a});
      const KvView kv{memory.data(), geometry.layer_bytes(), geometry};
      for (int64_t t = kBlockTokens - 1; t >= 0; --t) {
        const float* k = tokens[static_cast<std::size_t>(t)].data();
        kv_write(isa, kv, 0, t, 1, k, k + head_dim);
      }
      return memory;
    };
    const auto want = written(Isa::kScalar);
    for (Isa isa : runnable_isas()) EXPECT_EQ(written(isa), want) << isa_name(isa) << " head_dim " << head_dim;
  }
}

TEST_P(AttentionFormats, WrittenTokensReadBackRoundedOnce) {
  const KvFormat format = GetParam();
  for (int64_t head_dim : {1, 2, 3, 5, 16, 24, 64, 80, 512}) {
    AlignedBuffer memory(static_cast<std::size_t>(3 * KvGeometry{format, 2, head_dim}.layer_bytes()));
    const KvView kv{memory.data(), KvGeometry{format, 2, head_dim}.layer_bytes(), {format, 2, head_dim}};
    ASSERT_EQ(kv.geometry.head_bytes() % 64, 0);
    std::mt19937 random(3);
    std::normal_distribution<float> normal(0.0f, 2.0f);
    std::vector<std::vector<float>> written;
    const auto for_every_slot = [&](auto visit) {
      for (int64_t block = 0; block < 3; ++block) {
        for (int64_t token = 0; token < kBlockTokens; ++token) {
          for (int64_t head = 0; head < 2; ++head) visit(block, token, head);
        }
      }
    };
    for_every_slot([&](int64_t block, int64_t token, int64_t head) {
      std::vector<float> kv_values(static_cast<std::size_t>(2 * head_dim));
      // Some far below the largest.
      for (float& x : kv_values) x = std::ldexp(normal(random), -static_cast<int>(random() % 4 * (random() % 8)));
      kv_write(Isa::kScalar, kv, block, token, head, kv_values.data(), kv_values.data() + head_dim);
      written.push_back(kv_values);
    });
    std::size_t slot = 0;
    for_every_slot([&](int64_t block, int64_t token, int64_t head) {
      const std::vector<float>& want = written[slot++];
      std::vector<float> got(want.size());
      kv_read(kv, block, token, head, got.data(), got.data() + head_dim);
      for (int64_t half = 0; half < 2; ++half) {
        const auto values = std::span(want).subspan(static_cast<std::size_t>(half * head_dim), static_cast<std::size_t>(head_dim));
        for (int64_t d = 0; d < head_dim; ++d) {
          const float x = want[static_cast<std::size_t>(half * head_dim + d)];
          ASSERT_EQ(got[static_cast<std::size_t>(half * head_dim + d)], round_to_format(format, x, values))
              << name_of(format) << " head_dim " << head_dim;
        }
      }
    });
  }
}

TEST_P(AttentionFormats, ExtremesAreRoundedOnce) {
  const KvGeometry geometry{GetParam(), 1, 9};
  AlignedBuffer memory(static_cast<std::size_t>(geometry.layer_bytes()));
  const KvView kv{memory.data(), geometry.layer_bytes(), geometry};
  const float infinity = std::numeric_limits<float>::infinity();
  // Ties of bf16 (to even), the carry into infinity, subnormals and signed zeros.
  const float values[9] = {0x1.01p0f, 0x1.03p0f, -0x1.01p0f, 3.4e38f, 1e-40f, -0.0f, 1.0f, 0x1.010002p0f, 127.0f};
  const float broken[9] = {1.0f, 2.0f, infinity, 4.0f, std::nanf(""), -infinity, 7.0f, 8.0f, 9.0f};
  const float zeros[9] = {};
  float k[9], v[9];
  kv_write(Isa::kScalar, kv, 0, 3, 0, values, broken);
  kv_read(kv, 0, 3, 0, k, v);
  if (has_scales(GetParam())) {
    for (float x : v) EXPECT_TRUE(std::isnan(x));
  } else {
    for (int i = 0; i < 9; ++i) {
      const auto rounded = [&](float x) { return GetParam() == KvFormat::kF32 ? x : bf16_to_f32(f32_to_bf16(x)); };
      EXPECT_EQ(k[i], rounded(values[i]));
      EXPECT_EQ(std::signbit(k[i]), std::signbit(values[i]));
      EXPECT_TRUE(v[i] == rounded(broken[i]) || (std::isnan(v[i]) && std::isnan(broken[i])));
    }
  }
  kv_write(Isa::kScalar, kv, 0, 3, 0, zeros, zeros);
  kv_read(kv, 0, 3, 0, k, v);
  for (int i = 0; i < 9; ++i) EXPECT_TRUE(k[i] == 0.0f && v[i] == 0.0f);
}

TEST_P(AttentionFormats, BrokenKeyIsNotHidden) {
  const Shape shape{GetParam(), 4, 2, 64, 3, 40};
  Sequence sequence(shape);
  std::vector<float> k(64, 1.0f), v(64, 1.0f);
  k[10] = std::nanf("");
  kv_write(Isa::kScalar, sequence.kv(), sequence.args(nullptr).blocks[0], 7, 1, k.data(), v.data());
  for (Isa isa : runnable_isas()) {
    const std::vector<float> out = sequence.run(isa, 3);
    for (int64_t row = 0; row < 3; ++row) {
      EXPECT_FALSE(std::isnan(out[static_cast<std::size_t>(row * sequence.out_stride())])) << isa_name(isa) << ": the other kv head";
      EXPECT_TRUE(std::isnan(out[static_cast<std::size_t>(row * sequence.out_stride() + 3 * 64)])) << isa_name(isa);
    }
  }
}

TEST_P(AttentionFormats, BrokenValueIsNotHidden) {
  // Where values have scales: one of NaN must come through, and values that are all zero must not divide by their size.
  const Shape shape{GetParam(), 4, 2, 64, 3, 40};
  Sequence sequence(shape);
  const std::vector<float> k(64, 1.0f), broken(64, std::nanf("")), zeros(64);
  kv_write(Isa::kScalar, sequence.kv(), sequence.args(nullptr).blocks[0], 7, 1, k.data(), broken.data());
  for (int64_t t = 0; t < 43; ++t) {
    kv_write(Isa::kScalar, sequence.kv(), sequence.args(nullptr).blocks[static_cast<std::size_t>(t / 32)], t % 32, 0, k.data(),
             zeros.data());
  }
  for (Isa isa : runnable_isas()) {
    const std::vector<float> out = sequence.run(isa, 3);
    for (int64_t row = 0; row < 3; ++row) {
      EXPECT_EQ(out[static_cast<std::size_t>(row * sequence.out_stride())], 0.0f) << isa_name(isa) << ": the other kv head";
      EXPECT_TRUE(std::isnan(out[static_cast<std::size_t>(row * sequence.out_stride() + 3 * 64)])) << isa_name(isa);
    }
  }
}

TEST_P(AttentionFormats, LaterTokensDoNotReachEarlierRows) {
  // The same rows, once with broken keys and values after them in their own block: not a bit changes.
  const Shape shape{GetParam(), 9, 3, 64, 20, 40};
  for (Isa isa : runnable_isas()) {
    Sequence sequence(shape);
    const std::vector<float> before = sequence.run(isa, 20);
    const std::vector<float> broken(64, std::nanf(""));
    for (int64_t h = 0; h < 3; ++h)
      kv_write(isa, sequence.kv(), sequence.args(nullptr).blocks[1], 59 - 32, h, broken.data(), broken.data());
    const std::vector<float> after = sequence.run(isa, 20);
    EXPECT_EQ(std::memcmp(before.data(), after.data(), static_cast<std::size_t>(19 * sequence.out_stride()) * 4), 0) << isa_name(isa);
    EXPECT_TRUE(std::isnan(after[static_cast<std::size_t>(19 * sequence.out_stride())])) << isa_name(isa);
  }
}

INSTANTIATE_TEST_SUITE_P(Kv, AttentionFormats, testing::ValuesIn(kFormats),
                         [](const auto& format) { return std::string(name_of(format.param)); });

}  // namespace
}  // namespace millrace
