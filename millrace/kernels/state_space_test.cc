#include "millrace/kernels/state_space.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "millrace/kernels/state_space_variants.h"

namespace millrace {
namespace {

constexpr float kEps32 = std::numeric_limits<float>::epsilon();  // one unit in the last place at 1
constexpr float kGuard = -77.0f;
// Around every vector width.
constexpr int64_t kSizes[] = {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129};

// Numbers at an unaligned address, followed by guards.
class Row {
 public:
  explicit Row(int64_t size) : size_(size), memory_(static_cast<std::size_t>(size + 33), kGuard) {}
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
  bool guards_intact() const {
    for (std::size_t i = static_cast<std::size_t>(size_) + 1; i < memory_.size(); ++i) {
      if (memory_[i] != kGuard) return false;
    }
    return memory_[0] == kGuard;
  }
  int64_t size() const { return size_; }

 private:
  int64_t size_;
  std::vector<float> memory_;
};

void expect_near(const Row& got, const Row& want, float relative, float absolute) {
  ASSERT_TRUE(got.guards_intact()) << "wrote beyond the row";
  for (int64_t i = 0; i < want.size(); ++i) {
    if (std::isnan(want[i])) {
      ASSERT_TRUE(std::isnan(got[i])) << "at " << i;
    } else {
      ASSERT_LE(std::abs(got[i] - want[i]), relative * std::abs(want[i]) + absolute)
          << "at " << i << ": got " << got[i] << ", expected " << want[i];
    }
  }
}

// Runs `check(isa)` for every vector variant of this machine.
void for_variants(auto check) {
  bool any = false;
  for (Isa isa : kAllIsas) {
    if (isa == Isa::kScalar || !isa_runnable(isa)) continue;
    SCOPED_TRACE(isa_name(isa));
    any = true;
    check(isa);
  }
  if (!any) GTEST_SKIP() << "this CPU runs no vector variant";
}

TEST(StateSpace, ConvolutionMatchesReference) {
  for_variants([](Isa isa) {
    for (int64_t size : kSizes) {
      for (int64_t num_taps : {1, 2, 3, 4, 7}) {
        SCOPED_TRACE(testing::Message() << "size " << size << " taps " << num_taps);
        const int64_t stride = size + 5;
        std::vector<Row> rows;
        std::vector<const float*> taps;
        for (int64_t t = 0; t < num_taps; ++t) rows.push_back(Row::normal(size, static_cast<uint32_t>(t)));
        for (const Row& row : rows) taps.push_back(row.data());
        const Row weights = Row::normal(num_taps * stride, 50), bias = Row::normal(size, 51);
        for (const float* b : {bias.data(), static_cast<const float*>(nullptr)}) {
          Row want(size), got(size);
          ref::kStateSpace.convolve_row(taps.data(), num_taps, weights.data(), stride, b, size, want.data());
          convolve_row(isa, taps, weights.data(), stride, b, size, got.data());
          expect_near(got, want, kEps32, kEps32 * 8 * static_cast<float>(num_taps));
          convolve_row(isa, taps, weights.data(), stride, b, size, rows.back().data());  // over its newest tap
          expect_near(rows.back(), got, 0.0f, 0.0f);
          rows.back() = Row::normal(size, static_cast<uint32_t>(num_taps - 1));
          taps.back() = rows.back().data();
        }
      }
    }
  });
}

TEST(StateSpace, ProductsMatchReference) {
  for_variants([](Isa isa) {
    for (int64_t size : kSizes) {
      const Row a = Row::normal(size, 1), b = Row::normal(size, 2);
      Row want(size), got(size);
      ref::kStateSpace.multiply_row(a.data(), b.data(), size, want.data());
      multiply_row(isa, a.data(), b.data(), size, got.data());
      expect_near(got, want, 0.0f, 0.0f);
    }
  });
}

TEST(StateSpace, SoftplusMatchesReference) {
  std::vector<float> values = {0.0f, -0.0f, 1e-30f, -1e-30f, 20.0f, -20.0f, 80.0f, -80.0f, 1e30f, std::numeric_limits<float>::quiet_NaN()};
  for (int i = -400; i <= 400; ++i) values.push_back(static_cast<float>(i) * 0.05f);
  const auto size = static_cast<int64_t>(values.size());
  Row x(size), want(size);
  std::copy(values.begin(), values.end(), x.data());
  ref::kStateSpace.softplus_row(x.data(), size, want.data());
  EXPECT_FLOAT_EQ(want[0], std::log(2.0f));
  EXPECT_EQ(want[6], 80.0f);
  EXPECT_FLOAT_EQ(want[5], 2.06115362e-9f);
  for_variants([&](Isa isa) {
    Row got(size);
    softplus_row(isa, x.data(), size, got.data());
    expect_near(got, want, 6 * kEps32, 0.0f);
    softplus_row(isa, x.data(), size, x.data());  // in place
    expect_near(x, got, 0.0f, 0.0f);
    std::copy(values.begin(), values.end(), x.data());
  });
}

// Several tokens, so that states grow and decay; both forms of decay.
TEST(StateSpace, ScanMatchesReference) {
  for_variants([](Isa isa) {
    for (int64_t size : kSizes) {
      for (int64_t num_states : {1, 3, 8, 16, 33}) {
        for (bool one_decay : {false, true}) {
          SCOPED_TRACE(testing::Message() << "size " << size << " states " << num_states << (one_decay ? " one decay" : ""));
          const int64_t a_stride = one_decay ? 0 : size + 3, state_stride = size + 1;
          Row a = Row::normal(one_decay ? size : num_states * a_stride, 3, 2.0f), dt(size);
          for (int64_t i = 0; i < a.size(); ++i) a.data()[i] = -std::abs(a[i]);
          const Row d = Row::normal(size, 4);
          Row want_state = Row::normal(num_states * state_stride, 5), got_state = want_state, want(size), got(size);
          for (uint32_t token = 0; token < 5; ++token) {
            const Row x = Row::normal(size, 10 + token), b = Row::normal(num_states, 20 + token), c = Row::normal(num_states, 30 + token);
            const Row raw = Row::normal(size, 40 + token);
            ref::kStateSpace.softplus_row(raw.data(), size, dt.data());
            const ScanToken in{x.data(), dt.data(), b.data(),   c.data(),          a.data(),
                               a_stride, d.data(),  num_states, want_state.data(), state_stride};
            ScanToken own = in;
            own.state = got_state.data();
            ref::kStateSpace.scan_row(in, size, want.data());
            scan_row(isa, own, size, got.data());
            // Exponents are at most some tens, and each of num_states terms is rounded.
            const float tolerance = kEps32 * 16 * static_cast<float>(num_states + 4);
            expect_near(got_state, want_state, 32 * kEps32, 32 * kEps32);
            expect_near(got, want, tolerance, tolerance);
          }
        }
      }
    }
  });
}

// A channel's result does not depend on where among the channels of a call it stands: calls divide channels as they like.
TEST(StateSpace, ChannelsAreIndependentOfTheirCompany) {
  for_variants([](Isa isa) {
    constexpr int64_t kSize = 61, kStates = 9;
    Row a = Row::normal(kStates * kSize, 1), dt = Row::normal(kSize, 2);
    for (int64_t i = 0; i < a.size(); ++i) a.data()[i] = -std::abs(a[i]);
    for (int64_t i = 0; i < kSize; ++i) dt.data()[i] = std::abs(dt[i]);
    const Row x = Row::normal(kSize, 3), b = Row::normal(kStates, 4), c = Row::normal(kStates, 5), d = Row::normal(kSize, 6);
    Row state = Row::normal(kStates * kSize, 7), whole(kSize), part(kSize);
    Row other = state;
    scan_row(isa, {x.data(), dt.data(), b.data(), c.data(), a.data(), kSize, d.data(), kStates, state.data(), kSize}, kSize, whole.data());
    for (int64_t begin = 0; begin < kSize; begin += 7) {
      const int64_t size = std::min<int64_t>(7, kSize - begin);
      scan_row(isa,
               {x.data() + begin, dt.data() + begin, b.data(), c.data(), a.data() + begin, kSize, d.data() + begin, kStates,
                other.data() + begin, kSize},
               size, part.data() + begin);
    }
    expect_near(part, whole, 0.0f, 0.0f);
    expect_near(other, state, 0.0f, 0.0f);
  });
}

}  // namespace
}  // namespace millrace
