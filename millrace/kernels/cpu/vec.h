// Vectors of f32 for bodies that are written once and compiled per instruction set. The including file defines MR_VARIANT, the namespace
// of its variant, and is compiled with that variant's flags; what is left undefined here is the plain x86-64-v2 baseline. All is static and
// always inlined: no copy compiled with wider instructions may reach the linker (it would be kept for the whole program).
#include <immintrin.h>

#include <cstdint>

#ifndef MR_VARIANT
#error "MR_VARIANT names the namespace of the variant"
#endif

#define MR_INLINE [[gnu::always_inline]] static inline
#ifdef __clang__
#define MR_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MR_UNROLL _Pragma("GCC unroll 32")
#endif

namespace millrace::MR_VARIANT {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
// For forms with a mask where g++ 12 takes the undefined operand of the plain form for an uninitialized variable.
inline constexpr __mmask16 kAllLanes = 0xffff;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

// Operators + - * / and comparisons work lane by lane (a vector extension of g++ and clang). Nothing contracts them.
typedef float F32 __attribute__((vector_size(kLanes * 4), may_alias));
typedef int32_t I32 __attribute__((vector_size(kLanes * 4), may_alias));
typedef float F32Unaligned __attribute__((vector_size(kLanes * 4), may_alias, aligned(1)));
typedef int32_t I32Unaligned __attribute__((vector_size(kLanes * 4), may_alias, aligned(1)));

MR_INLINE F32 load(const float* p) { return *reinterpret_cast<const F32Unaligned*>(p); }
MR_INLINE I32 load_i32(const void* p) { return *reinterpret_cast<const I32Unaligned*>(p); }
MR_INLINE void store(float* p, F32 v) { *reinterpret_cast<F32Unaligned*>(p) = v; }
MR_INLINE F32 set1(float x) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(x);
#elif defined(__AVX2__)
  return _mm256_set1_ps(x);
#else
  return F32{x, x, x, x};
#endif
}
MR_INLINE F32 zero() { return F32{}; }
MR_INLINE I32 bits(F32 v) { return reinterpret_cast<I32>(v); }
MR_INLINE F32 from_bits(I32 v) { return reinterpret_cast<F32>(v); }
MR_INLINE F32 to_f32(I32 v) { return __builtin_convertvector(v, F32); }

MR_INLINE I32 lane_numbers() {
#if defined(__AVX512F__)
  return I32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(__AVX2__)
  return I32{0, 1, 2, 3, 4, 5, 6, 7};
#else
  return I32{0, 1, 2, 3};
#endif
}
MR_INLINE I32 set1_i32(int32_t x) { return I32{} + x; }

// a * b + c, fused where the instruction set has it.
MR_INLINE F32 fma(F32 a, F32 b, F32 c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// NaN in b is kept, NaN in a is not.
MR_INLINE F32 max(F32 a, F32 b) {
#if defined(__AVX512F__)
  return _mm512_maskz_max_ps(kAllLanes, a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return _mm_max_ps(a, b);
#endif
}
MR_INLINE F32 min(F32 a, F32 b) {
#if defined(__AVX512F__)
  return _mm512_maskz_min_ps(kAllLanes, a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#else
  return _mm_min_ps(a, b);
#endif
}

// Lanes where the mask is -1 from a, others (0) from b. Masks are what comparisons of vectors give.
MR_INLINE F32 select(I32 mask, F32 a, F32 b) { return mask ? a : b; }
// Lanes [begin, end) are -1; either may lie outside of the vector.
MR_INLINE I32 lanes_between(int64_t begin, int64_t end) {
  const int32_t first = begin < 0 ? 0 : static_cast<int32_t>(begin), last = end > kLanes ? kLanes : static_cast<int32_t>(end);
  return (lane_numbers() >= set1_i32(first)) & (lane_numbers() < set1_i32(last));
}

// The first `count` (1 .. kLanes) values; the other lanes are zero, their memory is not touched.
MR_INLINE F32 load_first(const float* p, int64_t count) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#elif defined(__AVX2__)
  return _mm256_maskload_ps(p, reinterpret_cast<__m256i>(lanes_between(0, count)));
#else
  F32 v = {};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
#endif
}
MR_INLINE void store_first(float* p, F32 v, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), v);
#elif defined(__AVX2__)
  _mm256_maskstore_ps(p, reinterpret_cast<__m256i>(lanes_between(0, count)), v);
#else
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
#endif
}

// Calls body(index of the first value, load, store) for every vector of a row; the last one may be short.
template <class Body>
MR_INLINE void for_vectors(int64_t size, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    body(
        i, [](const float* p) __attribute__((always_inline)) { return load(p); },
        [](float* p, F32 v) __attribute__((always_inline)) { store(p, v); });
  }
  if (const int64_t rest = size - i; rest > 0) {
    body(
        i, [rest](const float* p) __attribute__((always_inline)) { return load_first(p, rest); },
        [rest](float* p, F32 v) __attribute__((always_inline)) { store_first(p, v, rest); });
  }
}

// Reductions fold the upper half onto the lower until one lane is left: one order for every caller.
MR_INLINE float sum_of_lanes(F32 v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}
MR_INLINE float max_of_lanes(F32 v) {  // NaN if any lane is
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) {
      const float a = lanes[i], b = lanes[i + width];
      lanes[i] = a > b || a != a ? a : b;
    }
  }
  return lanes[0];
}

// exp(x) for x <= 0, as softmax needs it: below -87 it stays at exp(-87), 1.6e-38. NaN stays NaN.
// Cody and Waite's reduction x = n ln 2 + r with ln 2 in two parts, then a polynomial of degree 6 for exp(r), |r| <= ln 2 / 2, fitted by
// reweighted least squares to the smallest relative error, 3.7e-9; rounding leaves about 1 ulp (measured in elementwise_test.cc).
MR_INLINE F32 exp_polynomial(F32 x, F32& n_rounded) {
  const F32 magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number, which the low bits then hold
  n_rounded = fma(x, set1(1.44269504088896341f), magic);
  const F32 n = n_rounded - magic;
  F32 r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  F32 p = set1(1.38637144e-3f);
  p = fma(p, r, set1(8.36754218e-3f));
  p = fma(p, r, set1(4.16672416e-2f));
  p = fma(p, r, set1(1.66665331e-1f));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r * r, r);
  return p + set1(1.0f);
}
MR_INLINE F32 exp_nonpositive(F32 x) {
  F32 n_rounded;
  const F32 p = exp_polynomial(max(set1(-87.0f), x), n_rounded);
  return p * from_bits((bits(n_rounded) << 23) + set1_i32(127 << 23));
}
// exp(x) for any x: overflows to infinity, underflows through the subnormal numbers to zero. NaN stays NaN.
MR_INLINE F32 exp(F32 x) {
  F32 n_rounded;
  const F32 p = exp_polynomial(min(set1(89.0f), max(set1(-104.0f), x)), n_rounded);
  // 2^n in two factors, since n = -150 .. 128 is beyond one exponent field.
  const I32 n = bits(n_rounded) - bits(set1(12582912.0f));
  const I32 half = n >> 1;
  return p * from_bits((half + 127) << 23) * from_bits((n - half + 127) << 23);
}

// tanh(x) = sign(x) (1 - e) / (1 + e) with e = exp(-2 |x|); near zero the difference cancels, so there its odd series up to x^7.
MR_INLINE F32 tanh(F32 x) {
  const I32 sign = bits(x) & set1_i32(INT32_MIN);
  const F32 magnitude = from_bits(bits(x) & set1_i32(INT32_MAX));
  const F32 e = exp_nonpositive(magnitude * set1(-2.0f));
  const F32 far = from_bits(bits((set1(1.0f) - e) / (set1(1.0f) + e)) | sign);
  const F32 square = x * x;
  F32 near = fma(square, set1(-17.0f / 315.0f), set1(2.0f / 15.0f));
  near = fma(near, square, set1(-1.0f / 3.0f));
  near = fma(near * square, x, x);
  return select(magnitude < set1(0.125f), near, far);
}

}  // namespace millrace::MR_VARIANT
