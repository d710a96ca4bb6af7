#include "millrace/kernels/attention.h"

#include "millrace/base/check.h"
#include "millrace/kernels/attention_variants.h"

namespace millrace {
namespace {

const AttentionVariant& variant(Isa isa, bool of_prompt) {
  switch (isa) {
    case Isa::kScalar: return baseline::kAttention;
    case Isa::kAvx2:
    case Isa::kAvx2Vnni: return avx2::kAttention;
    case Isa::kAvx512Vnni:
    case Isa::kAvx512VnniBf16: return avx512::kAttention;
    case Isa::kAmx: return of_prompt ? amx::kAttention : avx512::kAttention;
  }
  MR_CHECK(false, "unknown instruction set");
}

}  // namespace

int64_t KvGeometry::head_bytes() const { return KvHeadLayout(*this).size; }

int64_t attention_scratch_floats(const KvGeometry& geometry, int64_t) {
  MR_CHECK(geometry.head_dim >= 1 && geometry.head_dim <= 512, "head_dim must be 1 to 512");
  // Of every query of a tile: itself, its scores in a segment and its accumulator.
  return kTileQueries * 3 * kQueryStride;
}

int64_t attention_num_segments(const AttentionArgs& args, int64_t row) { return attention_last_key(args, row) / kSegmentTokens + 1; }

void attention(Isa isa, const KvView& kv, const AttentionArgs& args, int64_t row_begin, int64_t row_end, int64_t kv_head, float* scratch) {
  MR_DCHECK(args.num_heads % kv.geometry.num_kv_heads == 0, "heads share keys in whole groups");
  MR_DCHECK(row_begin >= 0 && row_end <= args.num_rows && kv_head >= 0 && kv_head < kv.geometry.num_kv_heads, "no such rows");
  variant(isa, args.of_prompt).attention(kv, args, row_begin, row_end, kv_head, scratch);
}

void attention_partial(Isa isa, const KvView& kv, const AttentionArgs& args, int64_t row, int64_t kv_head, int64_t segment, float* partial,
                       float* scratch) {
  MR_DCHECK(segment >= 0 && segment < attention_num_segments(args, row), "no such segment");
  variant(isa, args.of_prompt).partial(kv, args, row, kv_head, segment, partial, scratch);
}

void attention_merge(Isa isa, const KvView& kv, const AttentionArgs& args, int64_t row, int64_t kv_head, const float* partials,
                     int64_t num_segments) {
  variant(isa, args.of_prompt).merge(kv, args, row, kv_head, partials, num_segments);
}

}  // namespace millrace
