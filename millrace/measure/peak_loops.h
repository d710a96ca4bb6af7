#pragma once

#include <cstddef>
#include <cstdint>

// Loops that do nothing but what a CPU does fastest: multiply and add in registers, and read memory. One set per instruction-set level,
// compiled like a kernel's variants; machine_probe.cc times them. Kept free of templates and of anything that other files might share.
namespace millrace {

// Runs `rounds` rounds and returns the operations done, a multiplication and an addition counting as two. Null: the level has no
// instruction for it.
using ComputeLoop = double (*)(int64_t rounds);

// Reads `num_bytes` (a multiple of 1024, at `data` aligned to 64) in ascending order, asking for the line `prefetch_bytes` ahead (0: leaves
// that to the CPU). The result depends on all of them.
using ReadLoop = uint64_t (*)(const std::byte* data, int64_t num_bytes, int64_t prefetch_bytes);

struct PeakLoops {
  ComputeLoop int8;        // u8 * s8 of any values, summed to 32 bits
  ComputeLoop int8_short;  // the same for codes of 4 bits, whose products may first be summed in 16 bits; null where it is no faster
  ComputeLoop bf16;        // bf16 pairs, summed to f32
  ComputeLoop f32;         // fused multiply-add
  ReadLoop read;
};

namespace baseline {
extern const PeakLoops kPeakLoops;
}
namespace avx2 {
extern const PeakLoops kPeakLoops;
}
namespace avx2vnni {
extern const PeakLoops kPeakLoops;
}
namespace avx512 {
extern const PeakLoops kPeakLoops;
}
namespace avx512bf16 {
extern const PeakLoops kPeakLoops;
}
namespace amx {
extern const PeakLoops kPeakLoops;
}

}  // namespace millrace
