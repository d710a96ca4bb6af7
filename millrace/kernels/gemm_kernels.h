#pragma once

#include <cstddef>
#include <cstdint>

#include "millrace/kernels/gemm.h"

// What the dispatcher and the variants of gemm() share. Kept free of templates: per-ISA files include it.
namespace millrace {

inline constexpr int kNumWeightClasses = static_cast<int>(WeightClass::kIQ3_S) + 1;

// gemm() with its arguments as one record; `panels` is the first of num_panels.
struct GemmCall {
  WeightClass weight_class;
  GroupFormat group;  // of the grouped classes
  const std::byte* panels;
  int64_t panel_bytes, num_panels, k;
  const Activations* x;
  int64_t row_begin, num_rows;
  float* y;
  int64_t y_stride;
  float* scratch;
};

using GemmFunction = void (*)(const GemmCall&);

struct GemmTable {
  GemmFunction fast[kNumWeightClasses];         // by WeightClass
  GemmFunction exact;                           // any class
  GemmFunction prompt[kNumWeightClasses] = {};  // null: as fast
};

#define MR_DECLARE_PLAIN_GEMM      \
  void gemm_f32(const GemmCall&);  \
  void gemm_f16(const GemmCall&);  \
  void gemm_bf16(const GemmCall&); \
  void gemm_f8(const GemmCall&);   \
  void gemm_exact(const GemmCall&);
#define MR_DECLARE_QUANTIZED_GEMM  \
  void gemm_q4_0(const GemmCall&); \
  void gemm_q4_1(const GemmCall&); \
  void gemm_q5_0(const GemmCall&); \
  void gemm_q5_1(const GemmCall&); \
  void gemm_q8_0(const GemmCall&); \
  void gemm_q4_k(const GemmCall&); \
  void gemm_q5_k(const GemmCall&); \
  void gemm_q6_k(const GemmCall&);

#define MR_DECLARE_GROUPED_GEMM         \
  void gemm_int2_zero(const GemmCall&); \
  void gemm_int3_zero(const GemmCall&); \
  void gemm_int4(const GemmCall&);      \
  void gemm_int4_zero(const GemmCall&); \
  void gemm_int8(const GemmCall&);      \
  void gemm_int8_zero(const GemmCall&); \
  void gemm_code4(const GemmCall&);

#define MR_DECLARE_SMALL_BLOCK_GEMM  \
  void gemm_q2_k(const GemmCall&);   \
  void gemm_q3_k(const GemmCall&);   \
  void gemm_tq2_0(const GemmCall&);  \
  void gemm_iq4_nl(const GemmCall&); \
  void gemm_iq4_xs(const GemmCall&); \
  void gemm_mxfp4(const GemmCall&);  \
  void gemm_nvfp4(const GemmCall&);

#define MR_DECLARE_GRID_GEMM          \
  void gemm_iq1_s(const GemmCall&);   \
  void gemm_iq1_m(const GemmCall&);   \
  void gemm_iq2_xxs(const GemmCall&); \
  void gemm_iq2_xs(const GemmCall&);  \
  void gemm_iq2_s(const GemmCall&);   \
  void gemm_iq3_xxs(const GemmCall&); \
  void gemm_iq3_s(const GemmCall&);

namespace ref {
void gemm_plain(const GemmCall&);
void gemm_quantized(const GemmCall&);
void gemm_exact(const GemmCall&);
}  // namespace ref
namespace avx2 {
MR_DECLARE_PLAIN_GEMM MR_DECLARE_QUANTIZED_GEMM MR_DECLARE_GROUPED_GEMM MR_DECLARE_SMALL_BLOCK_GEMM MR_DECLARE_GRID_GEMM
}
namespace avx2vnni {
MR_DECLARE_QUANTIZED_GEMM MR_DECLARE_GROUPED_GEMM MR_DECLARE_SMALL_BLOCK_GEMM MR_DECLARE_GRID_GEMM
}
namespace avx512 {
MR_DECLARE_PLAIN_GEMM MR_DECLARE_QUANTIZED_GEMM MR_DECLARE_GROUPED_GEMM MR_DECLARE_SMALL_BLOCK_GEMM MR_DECLARE_GRID_GEMM
}
namespace avx512bf16 {
void gemm_bf16(const GemmCall&);
}
namespace amx {
void gemm_bf16(const GemmCall&);
// GemmPath::kPrompt
void prompt_q4_0(const GemmCall&);
void prompt_q4_1(const GemmCall&);
void prompt_q5_0(const GemmCall&);
void prompt_q5_1(const GemmCall&);
void prompt_q8_0(const GemmCall&);
void prompt_q4_k(const GemmCall&);
void prompt_q5_k(const GemmCall&);
void prompt_q6_k(const GemmCall&);
void prompt_int2_zero(const GemmCall&);
void prompt_int3_zero(const GemmCall&);
void prompt_int4(const GemmCall&);
void prompt_int4_zero(const GemmCall&);
void prompt_int8(const GemmCall&);
void prompt_int8_zero(const GemmCall&);
void prompt_code4(const GemmCall&);
void prompt_q2_k(const GemmCall&);
void prompt_q3_k(const GemmCall&);
void prompt_tq2_0(const GemmCall&);
void prompt_iq4_nl(const GemmCall&);
void prompt_iq4_xs(const GemmCall&);
void prompt_mxfp4(const GemmCall&);
void prompt_nvfp4(const GemmCall&);
void prompt_iq1_s(const GemmCall&);
void prompt_iq1_m(const GemmCall&);
void prompt_iq2_xxs(const GemmCall&);
void prompt_iq2_xs(const GemmCall&);
void prompt_iq2_s(const GemmCall&);
void prompt_iq3_xxs(const GemmCall&);
void prompt_iq3_s(const GemmCall&);
}  // namespace amx

#undef MR_DECLARE_PLAIN_GEMM
#undef MR_DECLARE_QUANTIZED_GEMM
#undef MR_DECLARE_GROUPED_GEMM
#undef MR_DECLARE_SMALL_BLOCK_GEMM
#undef MR_DECLARE_GRID_GEMM

}  // namespace millrace
