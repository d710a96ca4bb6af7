#include <cmath>

#include "millrace/kernels/gemm_kernels.h"
#include "millrace/kernels/grouped_panels.h"
#include "millrace/kernels/panel_layout.h"
#include "millrace/tensor/half.h"

// The definition of gemm() as loops: the judge of every variant, and the scalar one. Variants perform the same float operations in the
// same order (lanes are rows), so those of the integer and f32 classes agree with it bit for bit.
namespace millrace::ref {
namespace {

// Adds one block's share to a sum: integer dot products (of each 16 where the class has two scales), then one fused multiply-add; one more
// for the minimum.
float add_block(WeightClass weight_class, const BlockRow& weights, const int8_t* codes, float scale, const int16_t* sums, float sum) {
  const PanelLayout layout = panel_layout(weight_class);
  int32_t dots[2];
  for (int half = 0; half < 2; ++half) {
    dots[half] = -layout.zero_point * sums[half];
    for (int i = 16 * half; i < 16 * half + 16; ++i) dots[half] += weights.codes[i] * codes[i];
  }
  if (layout.num_scales == 2) {
    for (int half = 0; half < 2; ++half) {
      sum = std::fma(static_cast<float>(dots[half]), weights.scale[half] * scale, sum);
      if (layout.has_minimum) sum = std::fma(weights.minimum[half], scale * static_cast<float>(sums[half]), sum);
    }
    return sum;
  }
  sum = std::fma(static_cast<float>(dots[0] + dots[1]), weights.scale[0] * scale, sum);
  return layout.has_minimum ? std::fma(weights.minimum[0], scale * static_cast<float>(sums[0] + sums[1]), sum) : sum;
}

}  // namespace

void gemm_quantized(const GemmCall& call) {
  const Activations& x = *call.x;
  const int64_t num_blocks = call.k / kBlockK;
  for (int64_t r = 0; r < call.num_panels * kPanelRows; ++r) {
    const std::byte* panel = call.panels + r / kPanelRows * call.panel_bytes;
    for (int64_t m = 0; m < call.num_rows; ++m) call.y[m * call.y_stride + r] = 0;
    for (int64_t block = 0; block < num_blocks; ++block) {
      const BlockRow weights = load_block_row(call.weight_class, call.group, panel, block, r % kPanelRows);
      for (int64_t m = 0; m < call.num_rows; ++m) {
        const int64_t at = (call.row_begin + m) * num_blocks + block;  // activations are [row, block], as k is whole blocks
        float& sum = call.y[m * call.y_stride + r];
        sum = add_block(call.weight_class, weights, x.codes + at * kBlockK, x.scales[at], x.sums16 + at * 2, sum);
      }
    }
  }
}

// Every class: the panel as floats, then one fused multiply-add per k, ascending. For the plain classes this is the fast path too.
void gemm_exact(const GemmCall& call) {
  for (int64_t panel = 0; panel < call.num_panels; ++panel) {
    const std::byte* bytes = call.panels + panel * call.panel_bytes;
    for (int64_t row = 0; row < kPanelRows; ++row)
      unpack_panel_row(call.weight_class, call.group, bytes, call.k, row, call.scratch + row, kPanelRows);
    for (int64_t m = 0; m < call.num_rows; ++m) {
      const float* x = call.x->f32 + (call.row_begin + m) * call.x->f32_stride;
      for (int64_t row = 0; row < kPanelRows; ++row) {
        float sum = 0;
        for (int64_t i = 0; i < call.k; ++i) sum = std::fma(call.scratch[i * kPanelRows + row], x[i], sum);
        call.y[m * call.y_stride + panel * kPanelRows + row] = sum;
      }
    }
  }
}

// The fast path of the plain classes must do without scratch. That of 8-bit floats is the same: weights as f32, times f32 activations.
void gemm_plain(const GemmCall& call) {
  for (int64_t panel = 0; panel < call.num_panels; ++panel) {
    for (int64_t m = 0; m < call.num_rows; ++m) {
      const float* x = call.x->f32 + (call.row_begin + m) * call.x->f32_stride;
      for (int64_t row = 0; row < kPanelRows; ++row) {
        const std::byte* bytes = call.panels + panel * call.panel_bytes;
        float sum = 0;
        float block[kBlockK];
        for (int64_t i = 0; i < call.k; ++i) {
          float weight;
          if (call.weight_class == WeightClass::kF8E4M3) {
            if (i % kBlockK == 0) unpack_grouped_block(call.weight_class, call.group, bytes, i / kBlockK, row, block, 1);
            weight = block[i % kBlockK];
          } else if (call.weight_class == WeightClass::kF32) {
            weight = reinterpret_cast<const float*>(bytes)[i * kPanelRows + row];
          } else {
            const uint16_t bits = reinterpret_cast<const uint16_t*>(bytes)[i / 2 * kPanelRows * 2 + row * 2 + i % 2];
            weight = call.weight_class == WeightClass::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
          }
          sum = std::fma(weight, x[i], sum);
        }
        call.y[m * call.y_stride + panel * kPanelRows + row] = sum;
      }
    }
  }
}

}  // namespace millrace::ref
