#include "millrace/kernels/gemm.h"

#include "millrace/base/check.h"
#include "millrace/kernels/gemm_kernels.h"
#include "millrace/kernels/panel_layout.h"

namespace millrace {
namespace {

// The only place that knows which variants exist.
const GemmTable& table_of(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
    case Isa::kAvx2:
    case Isa::kAvx2Vnni:
    case Isa::kAvx512Vnni:
    case Isa::kAvx512VnniBf16: return ref::kGemm;
  }
  MR_CHECK(false, "unknown instruction set");
}

}  // namespace

ActivationForm activation_form(WeightClass weight_class, [[maybe_unused]] Isa isa, GemmPath path) {
  if (path == GemmPath::kExact) return ActivationForm::kF32;
  return is_quantized(weight_class) ? ActivationForm::kInt8 : ActivationForm::kF32;
}

void gemm(Isa isa, GemmPath path, const PackedMatrix& w, const Activations& x, int64_t panel_begin, int64_t panel_end, int64_t row_begin,
          int64_t row_end, float* y, int64_t y_stride, float* scratch) {
  MR_DCHECK(x.k == w.k(), "activations and weights differ in k");
  MR_DCHECK(0 <= panel_begin && panel_end <= w.num_panels() && 0 <= row_begin && row_end <= x.num_rows, "range out of bounds");
  if (panel_begin >= panel_end || row_begin >= row_end) return;
  const GemmCall call{.weight_class = w.weight_class(),
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
    table.fast[static_cast<int>(w.weight_class())](call);
  }
}

}  // namespace millrace
