#include "millrace/base/cpu_features.h"

#include <cpuid.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>

namespace millrace {
namespace {

struct CpuBits {
  bool avx2 = false, avx_vnni = false, avx512 = false, avx512_bf16 = false, amx = false;
};

// Tiles are 8 KB of state a thread, which Linux (5.16 and later) saves only for processes that asked: arch_prctl(ARCH_REQ_XCOMP_PERM).
bool tiles_permitted() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

CpuBits read_cpu_bits() {
  CpuBits bits;
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return bits;
  const bool osxsave = (c >> 27) & 1, fma = (c >> 12) & 1, f16c = (c >> 29) & 1;
  if (!osxsave) return bits;
  uint32_t xcr0_low = 0, xcr0_high = 0;
  __asm__ volatile("xgetbv" : "=a"(xcr0_low), "=d"(xcr0_high) : "c"(0));
  const bool ymm_saved = (xcr0_low & 0x6) == 0x6, zmm_saved = (xcr0_low & 0xe6) == 0xe6;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return bits;
  const uint32_t max_subleaf = a;
  const bool amx_bf16 = (d >> 22) & 1, amx_tile = (d >> 24) & 1, amx_int8 = (d >> 25) & 1;
  bits.avx2 = ymm_saved && fma && f16c && ((b >> 5) & 1) && ((b >> 8) & 1);  // and BMI2
  const bool f = (b >> 16) & 1, dq = (b >> 17) & 1, bw = (b >> 30) & 1, vl = (b >> 31) & 1, vnni = (c >> 11) & 1;
  bits.avx512 = bits.avx2 && zmm_saved && f && dq && bw && vl && vnni;
  if (max_subleaf >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    bits.avx_vnni = bits.avx2 && ((a >> 4) & 1);
    bits.avx512_bf16 = bits.avx512 && ((a >> 5) & 1);
    const bool tiles_saved = (xcr0_low & 0x60000) == 0x60000;
    bits.amx = bits.avx512_bf16 && tiles_saved && amx_bf16 && amx_tile && amx_int8 && tiles_permitted();
  }
  return bits;
}

// cgroup v2 "cpu.max" holds "<quota> <period>" or "max <period>"; v1 has two files.
int cgroup_cpus() {
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (v2 >> quota >> period && quota != "max" && period > 0)
    return std::max(1, static_cast<int>(std::ceil(std::atof(quota.c_str()) / period)));
  std::ifstream v1_quota("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double quota_us = 0;
  if (v1_quota >> quota_us && v1_period >> period && quota_us > 0 && period > 0)
    return std::max(1, static_cast<int>(std::ceil(quota_us / period)));
  return 1 << 20;
}

}  // namespace

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kScalar: return "scalar";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx2Vnni: return "avx2-vnni";
    case Isa::kAvx512Vnni: return "avx512-vnni";
    case Isa::kAvx512VnniBf16: return "avx512-vnni-bf16";
    case Isa::kAmx: return "amx";
  }
  return "unknown";
}

Result<Isa> parse_isa(std::string_view name) {
  for (Isa isa : kAllIsas) {
    if (name == isa_name(isa)) return isa;
  }
  return Status::invalid_argument(
      fmt::format("unknown instruction set \"{}\"; expected scalar, avx2, avx2-vnni, avx512-vnni, avx512-vnni-bf16 or amx", name));
}

bool isa_runnable(Isa isa) {
  static const CpuBits bits = read_cpu_bits();
  switch (isa) {
    case Isa::kScalar: return true;
    case Isa::kAvx2: return bits.avx2;
    case Isa::kAvx2Vnni: return bits.avx_vnni;
    case Isa::kAvx512Vnni: return bits.avx512;
    case Isa::kAvx512VnniBf16: return bits.avx512_bf16;
    case Isa::kAmx: return bits.amx;
  }
  return false;
}

Result<Isa> choose_isa() {
  if (const char* forced = std::getenv("MILLRACE_ISA"); forced != nullptr && *forced != '\0') {
    auto isa = parse_isa(forced);
    if (!isa.is_ok()) return isa.status().with_context("MILLRACE_ISA");
    if (!isa_runnable(*isa)) return Status::unsupported(fmt::format("MILLRACE_ISA: this CPU cannot run \"{}\"", forced));
    return *isa;
  }
  Isa best = Isa::kScalar;
  for (Isa isa : kAllIsas) {
    if (isa_runnable(isa)) best = isa;
  }
  return best;
}

int usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  const int affinity = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  return std::max(1, std::min(affinity, cgroup_cpus()));
}

}  // namespace millrace
