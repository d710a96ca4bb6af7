#include "millrace/kernels/gemm.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "millrace/kernels/gemm_test_data.h"
#include "millrace/kernels/panel_layout.h"
#include "millrace/tensor/dequantize.h"

namespace millrace {
namespace {

std::vector<Isa> runnable_isas() {
  std::vector<Isa> isas;
  int not_run = 0;
  for (Isa isa : kAllIsas) {
    if (isa_runnable(isa)) {
      isas.push_back(isa);
    } else {
      ++not_run;
    }
  }
  if (not_run > 0) std::printf("gemm: %d instruction-set levels cannot run here and were not tested\n", not_run);
  return isas;
}

// y [num_rows, 16 * num_panels] of the whole product.
std::vector<float> run_gemm(Isa isa, GemmPath path, const PackedMatrix& w, const Activations& x) {
  std::vector<float> y(static_cast<std::size_t>(x.num_rows * w.num_panels() * 16), NAN);
  std::vector<float> scratch(static_cast<std::size_t>(x.k_padded() * 16));
  gemm(isa, path, w, x, 0, w.num_panels(), 0, x.num_rows, y.data(), w.num_panels() * 16, scratch.data());
  return y;
}

// What the stored weights and the f32 activations mean, in double.
std::vector<double> true_product(const StoredRows& rows, const Activations& x) {
  std::vector<double> y(static_cast<std::size_t>(x.num_rows * rows.num_rows));
  std::vector<float> weights(static_cast<std::size_t>(rows.k));
  for (int64_t r = 0; r < rows.num_rows; ++r) {
    dequantize_row(rows.dtype, rows.row(r), rows.k, weights.data());
    for (int64_t m = 0; m < x.num_rows; ++m) {
      double sum = 0;
      for (int64_t i = 0; i < rows.k; ++i) sum += static_cast<double>(weights[static_cast<std::size_t>(i)]) * x.f32[m * x.f32_stride + i];
      y[static_cast<std::size_t>(m * rows.num_rows + r)] = sum;
    }
  }
  return y;
}

double relative_error(const std::vector<float>& got, int64_t got_stride, const std::vector<double>& want, int64_t want_stride) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const auto m = static_cast<int64_t>(i) / want_stride, r = static_cast<int64_t>(i) % want_stride;
    const double error = got[static_cast<std::size_t>(m * got_stride + r)] - want[i];
    difference += error * error;
    norm += want[i] * want[i];
  }
  return std::sqrt(difference / norm);
}

TEST(Gemm, ReferenceComputesTheProduct) {
  for (DType dtype : kGemmDTypes) {
    SCOPED_TRACE(dtype_name(dtype));
    const StoredRows rows = random_rows(dtype, 37, 512, 3);
    const PackedMatrix w = rows.packed();
    TestActivations x;
    set_random_activations(5, 512, 4, x);
    const auto want = true_product(rows, x.view);
    const int64_t stride = w.num_panels() * 16;
    EXPECT_LT(relative_error(run_gemm(Isa::kScalar, GemmPath::kExact, w, x.view), stride, want, 37), 2e-6);
    // int8 activations per 32: rounding is uniform in +-scale/2, about 0.7 % of the activations' norm.
    EXPECT_LT(relative_error(run_gemm(Isa::kScalar, GemmPath::kFast, w, x.view), stride, want, 37), 1.5e-2);
  }
}

TEST(Gemm, EveryVariantMatchesTheReference) {
  const auto isas = runnable_isas();
  for (DType dtype : kGemmDTypes) {
    const bool k_class = dtype_info(dtype).block_elements == 256;
    const bool plain = dtype_info(dtype).block_elements == 1;
    for (int64_t k : k_class ? std::vector<int64_t>{256, 512, 1536, 4096}
                     : plain ? std::vector<int64_t>{1, 2, 31, 64, 577, 1536}
                             : std::vector<int64_t>{32, 64, 96, 576, 800, 1536, 4096}) {
      if (k % dtype_info(dtype).block_elements != 0) continue;
      for (int64_t num_rows : {1, 16, 17, 40, 72}) {
        const PackedMatrix w = random_rows(dtype, num_rows, k, static_cast<uint32_t>(k + num_rows)).packed();
        for (int64_t num_tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 31, 33}) {
          // The reference is slow: the larger shapes only with the counts that reach every kernel.
          if (k * num_rows > 1 << 14 && num_tokens != 1 && num_tokens != 2 && num_tokens != 5 && num_tokens != 33) continue;
          TestActivations x;
          set_random_activations(num_tokens, k, static_cast<uint32_t>(num_tokens), x);
          const auto want = run_gemm(Isa::kScalar, GemmPath::kFast, w, x.view);
          for (Isa isa : isas) {
            SCOPED_TRACE(testing::Message() << isa_name(isa) << " " << dtype_name(dtype) << " rows=" << num_rows << " k=" << k
                                            << " tokens=" << num_tokens);
            const auto got = run_gemm(isa, GemmPath::kFast, w, x.view);
            if (activation_form(w.weight_class(), isa, GemmPath::kFast) == ActivationForm::kBf16) {
              // The reference of the rounded activations; what remains is f32 rounding in another order, of terms below about 4.
              for (auto& value : x.f32) value = bf16_to_f32(f32_to_bf16(value));
              const auto rounded_want = run_gemm(Isa::kScalar, GemmPath::kFast, w, x.view);
              for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], rounded_want[i], 1e-6 * static_cast<double>(k)) << i;
            } else {
              ASSERT_EQ(std::memcmp(want.data(), got.data(), want.size() * sizeof(float)), 0);
            }
          }
        }
      }
    }
  }
}

// Weights and activations rounded to bf16, multiplied exactly: what remains is f32 rounding, of sums whose terms are below about 4.
TEST(Gemm, PromptPathMultipliesBf16) {
  for (Isa isa : runnable_isas()) {
    if (!has_prompt_path(isa)) continue;
    for (DType dtype : kGemmDTypes) {
      const int64_t block = dtype_info(dtype).block_elements;
      if (block == 1) continue;
      for (int64_t k : block == 256 ? std::vector<int64_t>{256, 1024, 4096} : std::vector<int64_t>{32, 64, 96, 576, 1536}) {
        if (k % block != 0) continue;
        for (int64_t num_rows : {1, 16, 40, 72}) {
          const StoredRows rows = random_rows(dtype, num_rows, k, static_cast<uint32_t>(k + num_rows));
          const PackedMatrix w = rows.packed();
          std::vector<float> weights(static_cast<std::size_t>(num_rows * k));
          for (int64_t r = 0; r < num_rows; ++r) dequantize_row(dtype, rows.row(r), k, weights.data() + r * k);
          for (std::size_t i = 0; i < weights.size(); ++i) {  // from the middle towards zero and away from it by turns: k is even
            const auto bits = std::bit_cast<uint32_t>(weights[i]);
            weights[i] = bf16_to_f32(static_cast<uint16_t>((bits + (i % 2 == 0 ? 0x7fffu : 0x8000u)) >> 16));
          }
          for (int64_t num_tokens : {1, 3, 16, 17, 32, 47, 64}) {
            SCOPED_TRACE(testing::Message() << isa_name(isa) << " " << dtype_name(dtype) << " rows=" << num_rows << " k=" << k
                                            << " tokens=" << num_tokens);
            TestActivations x;
            set_random_activations(num_tokens, k, static_cast<uint32_t>(num_tokens), x);
            ASSERT_EQ(activation_form(w.weight_class(), isa, GemmPath::kPrompt), ActivationForm::kBf16);
            const auto got = run_gemm(isa, GemmPath::kPrompt, w, x.view);
            const int64_t stride = w.num_panels() * 16;
            double difference = 0, norm = 0;
            for (int64_t m = 0; m < num_tokens; ++m) {
              for (int64_t r = 0; r < num_rows; ++r) {
                double want = 0;
                for (int64_t i = 0; i < k; ++i)
                  want += static_cast<double>(weights[static_cast<std::size_t>(r * k + i)]) *
                          bf16_to_f32(x.view.bf16[m * x.view.bf16_stride() + i]);
                const double error = got[static_cast<std::size_t>(m * stride + r)] - want;
                difference += error * error;
                norm += want * want;
              }
            }
            // A weight a hair from the middle of two bf16 may round the other way than dequantize_row's.
            ASSERT_LT(std::sqrt(difference / norm), 2e-5);
          }
        }
      }
    }
  }
}

TEST(Gemm, ExactPathMatchesTheReference) {
  for (Isa isa : runnable_isas()) {
    for (DType dtype : kGemmDTypes) {
      const int64_t k = dtype_info(dtype).block_elements == 1 ? 77 : 512;
      const PackedMatrix w = random_rows(dtype, 40, k, 5).packed();
      for (int64_t num_tokens : {1, 2, 3, 5, 6, 7, 8, 13}) {
        SCOPED_TRACE(testing::Message() << isa_name(isa) << " " << dtype_name(dtype) << " tokens=" << num_tokens);
        TestActivations x;
        set_random_activations(num_tokens, k, 6, x);
        ASSERT_EQ(run_gemm(Isa::kScalar, GemmPath::kExact, w, x.view), run_gemm(isa, GemmPath::kExact, w, x.view));
      }
    }
  }
}

// docs/design.md D5: any split of rows and panels gives the same bits, and writes nothing else.
TEST(Gemm, ValuesDoNotDependOnTheRangesOfTheCall) {
  constexpr int64_t kTokens = 70, kPanels = 7;
  for (Isa isa : runnable_isas()) {
    for (DType dtype : kGemmDTypes) {
      for (GemmPath path : {GemmPath::kFast, GemmPath::kExact, GemmPath::kPrompt}) {
        if (path == GemmPath::kPrompt && !has_prompt_path(isa)) continue;
        const int64_t k = dtype_info(dtype).block_elements == 1 ? 75 : 768;
        const PackedMatrix w = random_rows(dtype, kPanels * 16 - 3, k, 8).packed();
        TestActivations x;
        set_random_activations(kTokens, k, 9, x);
        const auto whole = run_gemm(isa, path, w, x.view);
        std::vector<float> scratch(static_cast<std::size_t>(x.view.k_padded() * 16));
        std::mt19937 random(10);
        for (int trial = 0; trial < (isa == Isa::kScalar ? 2 : 12); ++trial) {
          const int64_t panel_begin = random() % kPanels, panel_end = panel_begin + 1 + random() % (kPanels - panel_begin);
          const int64_t row_begin = random() % kTokens, row_end = row_begin + 1 + random() % (trial % 2 == 0 ? 4 : kTokens - row_begin);
          if (row_end > kTokens) continue;
          SCOPED_TRACE(testing::Message() << isa_name(isa) << " " << dtype_name(dtype) << " panels [" << panel_begin << ", " << panel_end
                                          << ") tokens [" << row_begin << ", " << row_end << ")");
          const int64_t width = (panel_end - panel_begin) * 16, stride = width + 5;
          std::vector<float> y(static_cast<std::size_t>((row_end - row_begin) * stride), 12345.0f);
          gemm(isa, path, w, x.view, panel_begin, panel_end, row_begin, row_end, y.data(), stride, scratch.data());
          for (int64_t m = row_begin; m < row_end; ++m) {
            for (int64_t r = 0; r < stride; ++r) {
              const float want = r < width ? whole[static_cast<std::size_t>(m * kPanels * 16 + panel_begin * 16 + r)] : 12345.0f;
              ASSERT_EQ(y[static_cast<std::size_t>((m - row_begin) * stride + r)], want) << "token " << m << " column " << r;
            }
          }
        }
      }
    }
  }
}

// Largest codes against largest activations of one sign and of both: where 16-bit sums would saturate.
TEST(Gemm, ExtremeCodesDoNotSaturate) {
  for (Isa isa : runnable_isas()) {
    for (DType dtype : kGemmDTypes) {
      if (dtype_info(dtype).block_elements == 1) continue;
      for (int pattern = 0; pattern < 4; ++pattern) {
        SCOPED_TRACE(testing::Message() << isa_name(isa) << " " << dtype_name(dtype) << " pattern " << pattern);
        StoredRows rows = random_rows(dtype, 16, 512, 11);
        // All codes at the top; for the signed plane, -128 too.
        const std::byte fill = dtype == DType::kQ8_0 ? (pattern < 2 ? std::byte{0x80} : std::byte{0x7f}) : std::byte{0xff};
        std::fill(rows.bytes.begin(), rows.bytes.end(), fill);
        std::mt19937 random(12);
        const auto block_bytes = static_cast<std::size_t>(dtype_info(dtype).block_bytes);
        for (std::size_t at = 0; at < rows.bytes.size(); at += block_bytes) set_random_scales(dtype, &rows.bytes[at], random);
        const PackedMatrix w = rows.packed();
        std::vector<float> values(9 * 512);
        for (std::size_t i = 0; i < values.size(); ++i) values[i] = pattern % 2 == 0 ? 3.0f : (i % 2 == 0 ? -3.0f : 3.0f);
        if (pattern == 2)
          for (auto& value : values) value = -value;
        TestActivations x;
        set_activations(values, 9, 512, x);
        ASSERT_EQ(run_gemm(Isa::kScalar, GemmPath::kFast, w, x.view), run_gemm(isa, GemmPath::kFast, w, x.view));
      }
    }
  }
}

TEST(QuantizeActivations, EveryVariantGivesTheSameBits) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (Isa isa : runnable_isas()) {
    for (int64_t k : {1, 31, 32, 33, 64, 576, 1000}) {
      SCOPED_TRACE(testing::Message() << isa_name(isa) << " k=" << k);
      const auto size = static_cast<std::size_t>(k), padded = (size + 31) / 32 * 32;
      std::vector<float> x(size);
      for (auto& value : x) value = normal(random) * std::ldexp(1.0f, static_cast<int>(random() % 20) - 10);
      if (k >= 64) {
        for (std::size_t i = 0; i < 32; ++i) x[i] = 0.0f;
        for (std::size_t i = 32; i < 64; ++i) x[i] = static_cast<float>(i) - 47.5f;  // many ties once scaled to 127 / 15.5
      }
      if (k >= 576) {
        x[100] = INFINITY;
        x[140] = NAN;
        x[200] = 3e38f;
        for (std::size_t i = 224; i < 256; ++i) x[i] = 1e-42f;
      }
      std::vector<int8_t> want_codes(padded), codes(padded);
      std::vector<float> want_scales(padded / 32), scales(padded / 32);
      std::vector<int16_t> want_sums(padded / 16), sums(padded / 16);
      quantize_row_int8(Isa::kScalar, x.data(), k, want_codes.data(), want_scales.data(), want_sums.data());
      quantize_row_int8(isa, x.data(), k, codes.data(), scales.data(), sums.data());
      EXPECT_EQ(codes, want_codes);
      EXPECT_EQ(sums, want_sums);
      EXPECT_EQ(std::memcmp(scales.data(), want_scales.data(), scales.size() * sizeof(float)), 0);
      std::vector<uint16_t> want_bf16(padded), bf16(padded);
      convert_row_bf16(Isa::kScalar, x.data(), k, want_bf16.data());
      convert_row_bf16(isa, x.data(), k, bf16.data());
      EXPECT_EQ(bf16, want_bf16);
    }
  }
}

TEST(QuantizeActivations, CodesScalesAndSumsMeanWhatTheContractSays) {
  std::vector<float> x(64);
  for (std::size_t i = 0; i < 64; ++i) x[i] = i < 32 ? static_cast<float>(i) - 31.0f : 0.0f;
  std::vector<int8_t> codes(64);
  std::vector<float> scales(2);
  std::vector<int16_t> sums(4);
  quantize_row_int8(Isa::kScalar, x.data(), 64, codes.data(), scales.data(), sums.data());
  EXPECT_EQ(scales[0], 31.0f / 127.0f);
  EXPECT_EQ(scales[1], 0.0f);
  EXPECT_EQ(codes[0], -127);
  for (std::size_t i = 0; i < 64; ++i) EXPECT_NEAR(scales[i / 32] * codes[i], x[i], scales[i / 32] * 0.5001f) << i;
  for (std::size_t group = 0; group < 4; ++group) {
    int sum = 0;
    for (std::size_t i = 0; i < 16; ++i) sum += codes[group * 16 + i];
    EXPECT_EQ(sums[group], sum);
  }
}

}  // namespace
}  // namespace millrace
