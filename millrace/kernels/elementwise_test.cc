#include "millrace/kernels/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "millrace/kernels/elementwise_variants.h"

namespace millrace {
namespace {

constexpr float kEps32 = std::numeric_limits<float>::epsilon();  // one unit in the last place at 1
constexpr float kGuard = -77.0f;
// Around every vector width and the fourfold steps of sums, and real hidden sizes.
constexpr int64_t kSizes[] = {1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 576, 1000, 4095, 4096};

std::vector<Isa> vector_isas() {
  std::vector<Isa> isas;
  for (Isa isa : kAllIsas) {
    if (isa != Isa::kScalar && isa_runnable(isa)) isas.push_back(isa);
  }
  return isas;
}

// A row that starts at an unaligned address and is followed by guards.
class Row {
 public:
  explicit Row(int64_t size, float fill = 0.0f) : size_(size), memory_(static_cast<std::size_t>(size + 33), kGuard) {
    for (int64_t i = 0; i < size; ++i) data()[i] = fill;
  }
  static Row normal(int64_t size, uint32_t seed, float deviation = 1.0f, float mean = 0.0f) {
    Row row(size);
    std::mt19937 random(seed);
    std::normal_distribution<float> distribution(mean, deviation);
    for (int64_t i = 0; i < size; ++i) row.data()[i] = distribution(random);
    return row;
  }
  float* data() { return memory_.data() + 1; }
  const float* data() const { return memory_.data() + 1; }
  float operator[](int64_t i) const { return data()[i]; }
  int64_t size() const { return size_; }
  bool guards_intact() const {
    for (std::size_t i = static_cast<std::size_t>(size_) + 1; i < memory_.size(); ++i) {
      if (memory_[i] != kGuard) return false;
    }
    return memory_[0] == kGuard;
  }

 private:
  int64_t size_;
  std::vector<float> memory_;
};

// |got - want| <= relative * |want| + absolute, or both not numbers.
void expect_near(const Row& got, const Row& want, float relative, float absolute) {
  ASSERT_TRUE(got.guards_intact()) << "wrote beyond the row";
  for (int64_t i = 0; i < want.size(); ++i) {
    if (std::isnan(want[i])) {
      ASSERT_TRUE(std::isnan(got[i])) << "at " << i;
    } else if (std::isinf(want[i])) {
      ASSERT_EQ(got[i], want[i]) << "at " << i;
    } else {
      ASSERT_LE(std::abs(got[i] - want[i]), relative * std::abs(want[i]) + absolute)
          << "at " << i << ": got " << got[i] << ", expected " << want[i];
    }
  }
}

// Runs `check(isa)` for every vector variant of this machine.
void for_variants(auto check) {
  if (vector_isas().empty()) GTEST_SKIP() << "this CPU runs no vector variant";
  for (Isa isa : vector_isas()) {
    SCOPED_TRACE(isa_name(isa));
    check(isa);
  }
}

TEST(Elementwise, NormsMatchReference) {
  for_variants([](Isa isa) {
    for (int64_t size : kSizes) {
      for (float mean : {0.0f, 10.0f}) {
        SCOPED_TRACE(testing::Message() << "size " << size << " mean " << mean);
        const Row x = Row::normal(size, 1, 2.0f, mean), weight = Row::normal(size, 2, 0.5f, 1.0f), bias = Row::normal(size, 3);
        Row want(size), got(size);
        for (const float* w : {weight.data(), static_cast<const float*>(nullptr)}) {
          // The sum has at most size / 64 + 8 roundings on a path; half of their relative error reaches the root.
          ref::kElementwise.rms_norm_row(x.data(), w, 1e-5f, size, want.data());
          rms_norm_row(isa, x.data(), w, 1e-5f, size, got.data());
          expect_near(got, want, kEps32 * (4 + static_cast<float>(size) / 128), 0.0f);
          Row in_place = x;
          rms_norm_row(isa, in_place.data(), w, 1e-5f, size, in_place.data());
          expect_near(in_place, got, 0.0f, 0.0f);
          for (const float* b : {bias.data(), static_cast<const float*>(nullptr)}) {
            ref::kElementwise.layer_norm_row(x.data(), w, b, 1e-5f, size, want.data());
            layer_norm_row(isa, x.data(), w, b, 1e-5f, size, got.data());
            // The mean's rounding, relative to the deviation, adds to every value; one value alone has no deviation but eps.
            const float deviation = size == 1 ? 3e-3f : size < 8 ? 0.2f : 1.0f;
            expect_near(got, want, kEps32 * (8 + static_cast<float>(size) / 64), kEps32 * (4 + 8 * mean) / deviation);
          }
        }
      }
    }
  });
}

TEST(Elementwise, RopeMatchesReferenceAndLeavesTheRest) {
  for_variants([](Isa isa) {
    for (int64_t rotary_dim : {2, 4, 8, 10, 14, 16, 18, 32, 34, 48, 64, 80, 96, 128, 256}) {
      for (bool interleaved : {false, true}) {
        SCOPED_TRACE(testing::Message() << "rotary_dim " << rotary_dim << " interleaved " << interleaved);
        const Row head = Row::normal(rotary_dim + 6, 4);
        Row cos(rotary_dim / 2), sin(rotary_dim / 2);
        for (int64_t i = 0; i < rotary_dim / 2; ++i) {
          cos.data()[i] = std::cos(0.7f * static_cast<float>(i) + 0.3f);
          sin.data()[i] = std::sin(0.7f * static_cast<float>(i) + 0.3f);
        }
        Row want = head, got = head;
        ref::kElementwise.rope_head(want.data(), cos.data(), sin.data(), rotary_dim, interleaved);
        rope_head(isa, got.data(), cos.data(), sin.data(), rotary_dim, interleaved);
        expect_near(got, want, 2 * kEps32, 8 * kEps32);
        for (int64_t i = rotary_dim; i < head.size(); ++i) ASSERT_EQ(got[i], head[i]);
      }
    }
  });
}

constexpr ActivationKind kKinds[] = {ActivationKind::kSilu, ActivationKind::kGeluTanh,    ActivationKind::kGeluErf,
                                     ActivationKind::kRelu, ActivationKind::kReluSquared, ActivationKind::kQuickGelu,
                                     ActivationKind::kTanh};

TEST(Elementwise, ActivationsMatchReference) {
  // All of -90 .. 90 in small steps, the tails where GELU and SiLU underflow, and what is not a number.
  Row x(6000);
  for (int64_t i = 0; i < x.size(); ++i) x.data()[i] = 0.03f * static_cast<float>(i - 3000) + 1e-4f;
  x.data()[7] = 0.0f;
  x.data()[8] = std::nanf("");
  x.data()[9] = 1e-30f;
  x.data()[10] = 200.0f;
  x.data()[11] = 1e20f;
  for_variants([&](Isa isa) {
    for (ActivationKind kind : kKinds) {
      SCOPED_TRACE(static_cast<int>(kind));
      Row want(x.size()), got(x.size());
      ref::kElementwise.activate_row(kind, x.data(), x.size(), want.data());
      activate_row(isa, kind, x.data(), x.size(), got.data());
      // The argument u of an exponential is rounded, which costs |u| * eps / 2; |u| < 90 where the result is not tiny beyond use. The
      // formula 1 + tanh(u) of the reference cancels below the precision of double.
      const float absolute = kind == ActivationKind::kGeluTanh ? 1e-14f : 1e-30f;
      expect_near(got, want, kind == ActivationKind::kSilu ? 4 * kEps32 : 100 * kEps32, absolute);
      // Where results matter, |x| < 5, the bound is tight.
      for (int64_t i = 0; i < x.size(); ++i) {
        if (std::abs(x[i]) < 5 && std::abs(want[i]) > 1e-30f) {
          ASSERT_NEAR(got[i] / want[i], 1.0, 24 * kEps32) << x[i];
        }
      }
    }
  });
}

TEST(Elementwise, ExponentialIsAccurateToTwoUnits) {
  // silu(x) / x for very negative x is exp(x) but for roundings of the division and of 1 + exp(-x).
  for_variants([&](Isa isa) {
    double worst = 0;
    for (int64_t block = 0; block < 100; ++block) {
      Row x(1000), got(1000);
      for (int64_t i = 0; i < 1000; ++i) x.data()[i] = -20.0f - 0.000667f * static_cast<float>(block * 1000 + i);
      activate_row(isa, ActivationKind::kSilu, x.data(), x.size(), got.data());
      for (int64_t i = 0; i < 1000; ++i) {
        const double want = static_cast<double>(x[i]) * std::exp(static_cast<double>(x[i]));
        worst = std::max(worst, std::abs(got[i] / want - 1.0));
      }
    }
    EXPECT_LT(worst, 3 * kEps32);  // two for exp, one for the division and the sum
    RecordProperty(std::string("exp_worst_") + std::string(isa_name(isa)), std::to_string(worst / kEps32));
  });
}

TEST(Elementwise, SimpleRowsMatchReference) {
  for_variants([](Isa isa) {
    for (int64_t size : kSizes) {
      SCOPED_TRACE(size);
      const Row a = Row::normal(size, 5), b = Row::normal(size, 6, 20.0f);
      Row want = a, got = a;
      ref::kElementwise.add_row(b.data(), size, want.data());
      add_row(isa, b.data(), size, got.data());
      expect_near(got, want, 0.0f, 0.0f);
      ref::kElementwise.scale_row(b.data(), 0.3f, size, want.data());
      scale_row(isa, b.data(), 0.3f, size, got.data());
      expect_near(got, want, 0.0f, 0.0f);
      want = got = a;
      ref::kElementwise.add_scaled_row(b.data(), 0.3f, size, want.data());
      add_scaled_row(isa, b.data(), 0.3f, size, got.data());
      expect_near(got, want, 0.0f, 0.0f);
      want = got = b;
      ref::kElementwise.clip_row(want.data(), 15.0f, size);
      clip_row(isa, got.data(), 15.0f, size);
      expect_near(got, want, 0.0f, 0.0f);
      want = got = b;
      Row want_gate = a, got_gate = a;
      ref::kElementwise.limit_gated_row(want_gate.data(), want.data(), 0.7f, 1.0f, size);
      limit_gated_row(isa, got_gate.data(), got.data(), 0.7f, 1.0f, size);
      expect_near(got_gate, want_gate, 0.0f, 0.0f);
      expect_near(got, want, 0.0f, 0.0f);
      want = got = b;
      ref::kElementwise.softcap_row(want.data(), 30.0f, size);
      softcap_row(isa, got.data(), 30.0f, size);
      expect_near(got, want, 6 * kEps32, 0.0f);
      for (ActivationKind kind : kKinds) {
        ref::kElementwise.activate_mul_row(kind, a.data(), b.data(), size, want.data());
        activate_mul_row(isa, kind, a.data(), b.data(), size, got.data());
        expect_near(got, want, 24 * kEps32, 1e-30f);
        Row gate = a, up = b;
        activate_mul_row(isa, kind, gate.data(), up.data(), size, gate.data());
        activate_mul_row(isa, kind, a.data(), up.data(), size, up.data());
        expect_near(gate, got, 0.0f, 0.0f);
        expect_near(up, got, 0.0f, 0.0f);
      }
    }
  });
}

TEST(Elementwise, ClipKeepsWhatIsWithinAndNaN) {
  for_variants([](Isa isa) {
    Row x(5);
    const float values[] = {2.5f, -2.5f, 2.0f, -0.5f, std::nanf("")};
    for (int i = 0; i < 5; ++i) x.data()[i] = values[i];
    clip_row(isa, x.data(), 2.0f, 5);
    EXPECT_EQ(x[0], 2.0f);
    EXPECT_EQ(x[1], -2.0f);
    EXPECT_EQ(x[2], 2.0f);
    EXPECT_EQ(x[3], -0.5f);
    EXPECT_TRUE(std::isnan(x[4]));
  });
}

TEST(Elementwise, LimitedGateKeepsItsNegativeSideAndNaN) {
  for_variants([](Isa isa) {
    Row gate(4), up(4);
    const float gates[] = {9.0f, -9.0f, 6.5f, std::nanf("")}, ups[] = {9.0f, -9.0f, std::nanf(""), 0.5f};
    for (int i = 0; i < 4; ++i) gate.data()[i] = gates[i], up.data()[i] = ups[i];
    limit_gated_row(isa, gate.data(), up.data(), 7.0f, 1.0f, 4);
    EXPECT_EQ(gate[0], 7.0f);
    EXPECT_EQ(gate[1], -9.0f);
    EXPECT_EQ(gate[2], 6.5f);
    EXPECT_TRUE(std::isnan(gate[3]));
    EXPECT_EQ(up[0], 8.0f);
    EXPECT_EQ(up[1], -6.0f);
    EXPECT_TRUE(std::isnan(up[2]));
    EXPECT_EQ(up[3], 1.5f);
  });
}

TEST(Elementwise, SoftcapOfExtremes) {
  for_variants([](Isa isa) {
    Row x(5);
    const float values[] = {1e30f, -1e30f, 0.0f, 1e-20f, std::nanf("")};
    for (int i = 0; i < 5; ++i) x.data()[i] = values[i];
    softcap_row(isa, x.data(), 50.0f, 5);
    EXPECT_EQ(x[0], 50.0f);
    EXPECT_EQ(x[1], -50.0f);
    EXPECT_EQ(x[2], 0.0f);
    EXPECT_NEAR(x[3] / 1e-20f, 1.0f, 2 * kEps32);
    EXPECT_TRUE(std::isnan(x[4]));
  });
}

TEST(Elementwise, MaxFindsTheLowestIndexOfTheLargest) {
  for_variants([](Isa isa) {
    const float infinity = std::numeric_limits<float>::infinity();
    for (int64_t size : kSizes) {
      Row x = Row::normal(size, static_cast<uint32_t>(size), 1.0f, -5.0f);
      for (int64_t at = 0; at < size; at += 1 + size / 37) {
        Row y = x;
        y.data()[at] = 3.0f;
        y.data()[(at + size / 2) % size] = 3.0f;  // the same value again, before or after
        const RowMax got = max_row(isa, y.data(), size), want = ref::kElementwise.max_row(y.data(), size);
        ASSERT_EQ(got.value, 3.0f);
        ASSERT_EQ(got.index, want.index) << "size " << size << " at " << at;
        ASSERT_TRUE(got.finite);
        y.data()[at] = std::nanf("");
        ASSERT_FALSE(max_row(isa, y.data(), size).finite);
      }
      // Masked logits: all of them, or all but the last.
      Row masked(size, -infinity);
      EXPECT_EQ(max_row(isa, masked.data(), size).value, -infinity);
      EXPECT_EQ(max_row(isa, masked.data(), size).index, 0);
      EXPECT_TRUE(max_row(isa, masked.data(), size).finite);
      masked.data()[size - 1] = -1000.0f;
      EXPECT_EQ(max_row(isa, masked.data(), size).index, size - 1);
    }
  });
}

}  // namespace
}  // namespace millrace
