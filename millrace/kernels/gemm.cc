#include "millrace/kernels/gemm.h"

#include <algorithm>
#include <iterator>

#include "millrace/base/check.h"
#include "millrace/kernels/gemm_kernels.h"
#include "millrace/kernels/panel_layout.h"

namespace millrace {
namespace {

// The only place that knows which variants exist. Tables are in the order of WeightClass: the floats, these, the 8-bit floats, and those of
// small blocks.
#define MR_BLOCK_VARIANTS(of)                                                                                                        \
  of##_q4_0, of##_q4_1, of##_q5_0, of##_q5_1, of##_q8_0, of##_q4_k, of##_q5_k, of##_q6_k, of##_int2_zero, of##_int3_zero, of##_int4, \
      of##_int4_zero, of##_int8, of##_int8_zero, of##_code4
#define MR_SMALL_BLOCK_VARIANTS(of)                                                                                                      \
  of##_q2_k, of##_q3_k, of##_tq2_0, of##_iq4_nl, of##_iq4_xs, of##_mxfp4, of##_nvfp4, of##_iq1_s, of##_iq1_m, of##_iq2_xxs, of##_iq2_xs, \
      of##_iq2_s, of##_iq3_xxs, of##_iq3_s
#define MR_GEMM_VARIANTS(floats, bf16, blocks)        \
  {floats::gemm_f32, floats::gemm_f16,                \
   bf16::gemm_bf16,  MR_BLOCK_VARIANTS(blocks::gemm), \
   floats::gemm_f8,  MR_SMALL_BLOCK_VARIANTS(blocks::gemm)}

constexpr GemmTable scalar_table() {
  GemmTable table{{}, ref::gemm_exact};
  for (int c = 0; c < kNumWeightClasses; ++c)
    table.fast[c] = is_quantized(static_cast<WeightClass>(c)) ? ref::gemm_quantized : ref::gemm_plain;
  return table;
}

constexpr GemmTable kScalar = scalar_table();
const GemmTable kAvx2 = {MR_GEMM_VARIANTS(avx2, avx2, avx2), avx2::gemm_exact};
const GemmTable kAvx2Vnni = {MR_GEMM_VARIANTS(avx2, avx2, avx2vnni), avx2::gemm_exact};
const GemmTable kAvx512Vnni = {MR_GEMM_VARIANTS(avx512, avx512, avx512), avx512::gemm_exact};
const GemmTable kAvx512VnniBf16 = {MR_GEMM_VARIANTS(avx512, avx512bf16, avx512), avx512::gemm_exact};
const GemmTable kAmx = {MR_GEMM_VARIANTS(avx512, amx, avx512),
                        avx512::gemm_exact,
                        {nullptr, nullptr, nullptr, MR_BLOCK_VARIANTS(amx::prompt), nullptr, MR_SMALL_BLOCK_VARIANTS(amx::prompt)}};

#undef MR_GEMM_VARIANTS
#undef MR_SMALL_BLOCK_VARIANTS
#undef MR_BLOCK_VARIANTS

const GemmTable& table_of(Isa isa) {
  switch (isa) {
    case Isa::kScalar: return kScalar;
    case Isa::kAvx2: return kAvx2;
    case Isa::kAvx2Vnni: return kAvx2Vnni;
    case Isa::kAvx512Vnni: return kAvx512Vnni;
    case Isa::kAvx512VnniBf16: return kAvx512VnniBf16;
    case Isa::kAmx: return kAmx;
  }
  MR_CHECK(false, "unknown instruction set");
}

}  // namespace

ActivationForm activation_form(WeightClass weight_class, Isa isa, GemmPath path) {
  if (path == GemmPath::kExact) return ActivationForm::kF32;
  if (path == GemmPath::kPrompt && table_of(isa).prompt[static_cast<int>(weight_class)] != nullptr) return ActivationForm::kBf16;
  if (weight_class == WeightClass::kBf16 && isa >= Isa::kAvx512VnniBf16) return ActivationForm::kBf16;
  return is_quantized(weight_class) ? ActivationForm::kInt8 : ActivationForm::kF32;
}

bool has_prompt_path(Isa isa) {
  const GemmTable& table = table_of(isa);
  return std::any_of(std::begin(table.prompt), std::end(table.prompt), [](GemmFunction function) { return function != nullptr; });
}

void gemm(Isa isa, GemmPath path, const PackedMatrix& w, const Activations& x, int64_t panel_begin, int64_t panel_end, int64_t row_begin,
          int64_t row_end, float* y, int64_t y_stride, float* scratch) {
  MR_DCHECK(x.k == w.k(), "activations and weights differ in k");
  MR_DCHECK(0 <= panel_begin && panel_end <= w.num_panels() && 0 <= row_begin && row_end <= x.num_rows, "range out of bounds");
  if (panel_begin >= panel_end || row_begin >= row_end) return;
  const GemmCall call{.weight_class = w.weight_class(),
                      .group = w.group_format(),
                      .panels = w.panel(panel_begin),
                      .panel_bytes = w.panel_bytes(),
                      .num_panels = panel_end - panel_begin,
                      .k = w.k(),
                      .x = &x,
                      .row_begin = row_begin,
                      .num_rows = row_end - row_begin,
                      .y = y,
                      .y_stride = y_stride,
                      .scratch = scratch};
  const GemmTable& table = table_of(isa);
  if (path == GemmPath::kExact) {
    MR_DCHECK(scratch != nullptr && x.f32 != nullptr, "the exact path needs scratch and f32 activations");
    table.exact(call);
  } else {
    const auto index = static_cast<int>(w.weight_class());
    const bool prompt = path == GemmPath::kPrompt && table.prompt[index] != nullptr;
    (prompt ? table.prompt[index] : table.fast[index])(call);
  }
}

}  // namespace millrace
