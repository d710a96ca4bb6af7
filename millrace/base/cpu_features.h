#pragma once

#include <string_view>
#include <vector>

#include "millrace/base/status.h"

namespace millrace {

// The instruction-set levels for which kernels have variants, narrowest first (docs/design.md D5).
//   kAvx2           AVX2, FMA, F16C
//   kAvx2Vnni       the same with AVX-VNNI (256-bit vpdpbusd)
//   kAvx512Vnni     AVX-512 F, BW, VL, DQ, VNNI
//   kAvx512VnniBf16 the same with AVX512_BF16
//   kAmx            the same with AMX tiles of int8 and bf16
enum class Isa { kScalar, kAvx2, kAvx2Vnni, kAvx512Vnni, kAvx512VnniBf16, kAmx };

inline constexpr Isa kAllIsas[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx2Vnni, Isa::kAvx512Vnni, Isa::kAvx512VnniBf16, Isa::kAmx};

// As written in MILLRACE_ISA and on the start-up line: "scalar", "avx2", "avx2-vnni", "avx512-vnni", "avx512-vnni-bf16", "amx".
std::string_view isa_name(Isa isa);
Result<Isa> parse_isa(std::string_view name);

// Whether this CPU and operating system run the level. Asks Linux for the process's permission to use AMX tiles where the CPU has them.
bool isa_runnable(Isa isa);

// The widest runnable level, or the one that MILLRACE_ISA names. An unknown or unrunnable name is an error.
Result<Isa> choose_isa();

// Logical CPUs this process may use: the smaller of its affinity mask and its cgroup quota (rounded up), at least 1.
int usable_cpus();

}  // namespace millrace
