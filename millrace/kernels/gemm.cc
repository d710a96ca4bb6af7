#include "millrace/kernels/gemm.h"

#include <algorithm>
#include <iterator>

#include "millrace/base/check.h"
#include "millrace/kernels/gemm_kernels.h"
#include "millrace/kernels/panel_layout.h"

namespace millrace {
namespace {

// The classes from Q2_K on, which every set of variants has all of.
#define MR_SMALL_BLOCK_GEMM(of)                                                                     \
  of##_q2_k, of##_q3_k, of##_tq2_0, of##_iq4_nl, of##_iq4_xs, of##_mxfp4, of##_nvfp4, of##_iq1_s, \
      of##_iq1_m, of##_iq2_xxs, of##_iq2_xs, of##_iq2_s, of##_iq3_xxs, of##_iq3_s

// The only place that knows which variants exist. In the order of WeightClass.
const GemmTable kScalar = {{ref::gemm_plain, ref::gemm_plain, ref::gemm_plain, ref::gemm_quantized, ref::gemm_quantized, ref::gemm_quantized,
                            ref::gemm_quantized, ref::gemm_quantized, ref::gemm_quantized, ref::gemm_quantized, ref::gemm_quantized, ref::gemm_quantized,
                            ref::gemm_quantized, ref::gemm_quantized, ref::gemm_quantized, ref::gemm_quantized, ref::gemm_quantized, ref::gemm_quantized,
                            ref::gemm_plain, ref::gemm_quantized, ref::gemm_quantized, ref::gemm_quantized, ref::gemm_quantized, ref::gemm_quantized,
                            ref::gemm_quantized, ref::gemm_quantized, ref::gemm_quantized, ref::gemm_quantized, ref::gemm_quantized, ref::gemm_quantized,
                            ref::gemm_quantized, ref::gemm_quantized, ref::gemm_quantized},
                           ref::gemm_exact};
const GemmTable kAvx2 = {{avx2::gemm_f32, avx2::gemm_f16, avx2::gemm_bf16, avx2::gemm_q4_0, avx2::gemm_q4_1, avx2::gemm_q5_0, avx2::gemm_q5_1,
                          avx2::gemm_q8_0, avx2::gemm_q4_k, avx2::gemm_q5_k, avx2::gemm_q6_k, avx2::gemm_int2_zero, avx2::gemm_int3_zero,
                          avx2::gemm_int4, avx2::gemm_int4_zero, avx2::gemm_int8, avx2::gemm_int8_zero, avx2::gemm_code4, avx2::gemm_f8,
                            MR_SMALL_BLOCK_GEMM(avx2::gemm)},
                         avx2::gemm_exact};
const GemmTable kAvx2Vnni = {{avx2::gemm_f32, avx2::gemm_f16, avx2::gemm_bf16, avx2vnni::gemm_q4_0, avx2vnni::gemm_q4_1, avx2vnni::gemm_q5_0,
                              avx2vnni::gemm_q5_1, avx2vnni::gemm_q8_0, avx2vnni::gemm_q4_k, avx2vnni::gemm_q5_k, avx2vnni::gemm_q6_k,
                              avx2vnni::gemm_int2_zero, avx2vnni::gemm_int3_zero, avx2vnni::gemm_int4, avx2vnni::gemm_int4_zero,
                              avx2vnni::gemm_int8, avx2vnni::gemm_int8_zero, avx2vnni::gemm_code4, avx2::gemm_f8,
                            MR_SMALL_BLOCK_GEMM(avx2vnni::gemm)},
                             avx2::gemm_exact};
const GemmTable kAvx512Vnni = {{avx512::gemm_f32, avx512::gemm_f16, avx512::gemm_bf16, avx512::gemm_q4_0, avx512::gemm_q4_1, avx512::gemm_q5_0,
                                avx512::gemm_q5_1, avx512::gemm_q8_0, avx512::gemm_q4_k, avx512::gemm_q5_k, avx512::gemm_q6_k,
                                avx512::gemm_int2_zero, avx512::gemm_int3_zero, avx512::gemm_int4, avx512::gemm_int4_zero, avx512::gemm_int8,
                                avx512::gemm_int8_zero, avx512::gemm_code4, avx512::gemm_f8,
                            MR_SMALL_BLOCK_GEMM(avx512::gemm)},
                               avx512::gemm_exact};
const GemmTable kAvx512VnniBf16 = {{avx512::gemm_f32, avx512::gemm_f16, avx512bf16::gemm_bf16, avx512::gemm_q4_0, avx512::gemm_q4_1, avx512::gemm_q5_0,
                                    avx512::gemm_q5_1, avx512::gemm_q8_0, avx512::gemm_q4_k, avx512::gemm_q5_k, avx512::gemm_q6_k,
                                    avx512::gemm_int2_zero, avx512::gemm_int3_zero, avx512::gemm_int4, avx512::gemm_int4_zero, avx512::gemm_int8,
                                    avx512::gemm_int8_zero, avx512::gemm_code4, avx512::gemm_f8,
                            MR_SMALL_BLOCK_GEMM(avx512::gemm)},
                                   avx512::gemm_exact};
const GemmTable kAmx = {{avx512::gemm_f32, avx512::gemm_f16, amx::gemm_bf16, avx512::gemm_q4_0, avx512::gemm_q4_1, avx512::gemm_q5_0, avx512::gemm_q5_1,
                         avx512::gemm_q8_0, avx512::gemm_q4_k, avx512::gemm_q5_k, avx512::gemm_q6_k, avx512::gemm_int2_zero, avx512::gemm_int3_zero,
                         avx512::gemm_int4, avx512::gemm_int4_zero, avx512::gemm_int8, avx512::gemm_int8_zero, avx512::gemm_code4, avx512::gemm_f8,
                            MR_SMALL_BLOCK_GEMM(avx512::gemm)},
                        avx512::gemm_exact,
                        {nullptr, nullptr, nullptr, amx::prompt_q4_0, amx::prompt_q4_1, amx::prompt_q5_0, amx::prompt_q5_1, amx::prompt_q8_0,
                         amx::prompt_q4_k, amx::prompt_q5_k, amx::prompt_q6_k, amx::prompt_int2_zero, amx::prompt_int3_zero, amx::prompt_int4,
                         amx::prompt_int4_zero, amx::prompt_int8, amx::prompt_int8_zero, amx::prompt_code4, nullptr,
                         MR_SMALL_BLOCK_GEMM(amx::prompt)}};

#undef MR_SMALL_BLOCK_GEMM

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
