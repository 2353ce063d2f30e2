// Vectors of float and int32, as wide as the registers, as gcc and clang vector extensions: one source for
// every instruction set. (Vectors wider than the registers would do too, but gcc takes them apart into
// scalars.) Only for the hot sources; everything has internal linkage.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
#define PYMTG_LANES 16
#define PYMTG_LOW_PAIRS 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define PYMTG_HIGH_PAIRS 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define PYMTG_EVENS 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define PYMTG_ODDS 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define PYMTG_COUNT_UP 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#elif defined(__AVX2__)
#define PYMTG_LANES 8
#define PYMTG_LOW_PAIRS 0, 8, 1, 9, 2, 10, 3, 11
#define PYMTG_HIGH_PAIRS 4, 12, 5, 13, 6, 14, 7, 15
#define PYMTG_EVENS 0, 2, 4, 6, 8, 10, 12, 14
#define PYMTG_ODDS 1, 3, 5, 7, 9, 11, 13, 15
#define PYMTG_COUNT_UP 0, 1, 2, 3, 4, 5, 6, 7
#else
#define PYMTG_LANES 4
#define PYMTG_LOW_PAIRS 0, 4, 1, 5
#define PYMTG_HIGH_PAIRS 2, 6, 3, 7
#define PYMTG_EVENS 0, 2, 4, 6
#define PYMTG_ODDS 1, 3, 5, 7
#define PYMTG_COUNT_UP 0, 1, 2, 3
#endif

constexpr int kLanes = PYMTG_LANES;
typedef float VF __attribute__((vector_size(4 * PYMTG_LANES)));
typedef int32_t VI __attribute__((vector_size(4 * PYMTG_LANES)));
typedef uint32_t VU __attribute__((vector_size(4 * PYMTG_LANES)));
constexpr VI kLaneNumbers = {PYMTG_COUNT_UP};

#define PYMTG_INLINE static inline __attribute__((always_inline))

PYMTG_INLINE VF splat(float x) { return x - VF{}; }
PYMTG_INLINE VI splat_int(int32_t x) { return x - VI{}; }
PYMTG_INLINE VF as_float(VI x) { return (VF)x; }
PYMTG_INLINE VI as_int(VF x) { return (VI)x; }
PYMTG_INLINE VF to_float(VI x) { return __builtin_convertvector(x, VF); }

template <class V, class S>
PYMTG_INLINE V load(const S* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class V, class S>
PYMTG_INLINE void store(S* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

// The first n <= kLanes elements of four bytes, zeros for the rest; nothing is touched beyond them.
#if defined(__AVX512F__)
PYMTG_INLINE __mmask16 first_lanes(int64_t n) {
  return static_cast<__mmask16>(n >= kLanes ? 0xffff : (1 << n) - 1);
}
template <class V, class S>
PYMTG_INLINE V load_some(const S* from, int64_t n) {
  return (V)_mm512_maskz_loadu_epi32(first_lanes(n), from);
}
template <class V, class S>
PYMTG_INLINE void store_some(S* to, V v, int64_t n) {
  _mm512_mask_storeu_epi32(to, first_lanes(n), (__m512i)v);
}
#else
// Copy n < kLanes <= 8 elements without a call or a loop: n is the same for a whole run of rows, so the
// branches are predicted.
PYMTG_INLINE void copy_some(void* to, const void* from, int64_t n) {
  char* t = static_cast<char*>(to);
  const char* f = static_cast<const char*>(from);
  if (n & 4) std::memcpy(t, f, 16), t += 16, f += 16;
  if (n & 2) std::memcpy(t, f, 8), t += 8, f += 8;
  if (n & 1) std::memcpy(t, f, 4);
}
template <class V, class S>
PYMTG_INLINE V load_some(const S* from, int64_t n) {
  if (n >= kLanes) return load<V>(from);
  V v{};
  copy_some(&v, from, n);
  return v;
}
template <class V, class S>
PYMTG_INLINE void store_some(S* to, V v, int64_t n) {
  if (n >= kLanes)
    store(to, v);
  else
    copy_some(to, &v, n);
}
#endif

PYMTG_INLINE VF vmax(VF a, VF b) { return a > b ? a : b; }
PYMTG_INLINE VF vabs(VF x) { return as_float(as_int(x) & 0x7fffffff); }

// All ones in the lanes where x is NaN or infinite.
PYMTG_INLINE VI not_finite(VF x) { return (as_int(x) & 0x7f800000) == 0x7f800000; }

PYMTG_INLINE bool any(VI mask) {
  int32_t lanes[kLanes];
  store(lanes, mask);
  int32_t all = 0;
  for (int i = 0; i < kLanes; ++i) all |= lanes[i];
  return all != 0;
}

// Lanes in pairs, then pairs of pairs: the same order on every instruction set.
PYMTG_INLINE float sum(VF v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// exp(x) for x <= 0, relative error below 2e-7; 0 below -87.3, NaN for NaN. 2^n times a polynomial in
// r = x - n ln 2, |r| <= ln 2 / 2.
PYMTG_INLINE VF exp_neg(VF x) {
  const VF magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const VI tiny = x < -87.3f;
  const VF c = tiny ? splat(-87.3f) : x;
  const VF shifted = c * 1.44269504088896341f + magic;
  const VF n = shifted - magic;
  VF r = c - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  VF p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const VF power = as_float((as_int(shifted) << 23) + 0x3f800000);
  return tiny ? VF{} : p * power;
}

// 2 atanh(s) for |s| <= 1/3: log((1 + s) / (1 - s)), accurate relative to its own size near 0 too. Minimax in
// s^2, relative error of the polynomial 5e-9.
PYMTG_INLINE VF twice_atanh(VF s) {
  const VF q = s * s;
  VF p = splat(0.14012233912944794f);
  p = p * q + 0.13999569416046143f;
  p = p * q + 0.20010849833488464f;
  p = p * q + 0.3333320617675781f;
  return (s + s) * (p * q + 1.0f);
}

// log(1 + e) for 0 <= e <= 1.
PYMTG_INLINE VF log1p_unit(VF e) { return twice_atanh(e / (e + 2.0f)); }

// log(x) for normal x >= 1.
PYMTG_INLINE VF log_above_one(VF x) {
  const VI bits = as_int(x);
  // Split so that the mantissa lies in [sqrt(1/2), sqrt(2)).
  const VI e = (bits - 0x3f3504f3) >> 23;
  const VF m = as_float(bits - (e << 23));
  const VF k = to_float(e);
  const VF log_m = twice_atanh((m - 1.0f) / (m + 1.0f));
  const VF result = k * 0.693359375f + (log_m + k * -2.12194440e-4f);
  return not_finite(x) ? x : result;
}

// Alternate the elements of two vectors: a0 b0 a1 b1 ... in two vectors, and back.
PYMTG_INLINE VF interleave_low(VF a, VF b) { return __builtin_shufflevector(a, b, PYMTG_LOW_PAIRS); }
PYMTG_INLINE VF interleave_high(VF a, VF b) { return __builtin_shufflevector(a, b, PYMTG_HIGH_PAIRS); }
PYMTG_INLINE VF evens(VF low, VF high) { return __builtin_shufflevector(low, high, PYMTG_EVENS); }
PYMTG_INLINE VF odds(VF low, VF high) { return __builtin_shufflevector(low, high, PYMTG_ODDS); }

// Transpose a square tile in registers: interleaving rows i and i + kLanes / 2, log2(kLanes) times.
PYMTG_INLINE void transpose(VF (&t)[kLanes]) {
  for (int width = 1; width < kLanes; width *= 2) {
    VF u[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      u[2 * i] = interleave_low(t[i], t[i + kLanes / 2]);
      u[2 * i + 1] = interleave_high(t[i], t[i + kLanes / 2]);
    }
    for (int i = 0; i < kLanes; ++i) t[i] = u[i];
  }
}

// sqrt(x) for x >= 0 to about one unit in the last place, from the estimate of 1 / sqrt(x) and one Newton
// step: it keeps the divider, which the loss needs twice, free.
PYMTG_INLINE VF fast_sqrt(VF x) {
#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE__)
  // Keeps 0 out, and keeps the Newton step clear of denormals, each of which costs a hundred cycles.
  x = vmax(x, splat(1e-24f));
#if defined(__AVX512F__)
  const VF y = (VF)_mm512_maskz_rsqrt14_ps(0xffff, (__m512)x);
#elif defined(__AVX2__)
  const VF y = (VF)_mm256_rsqrt_ps((__m256)x);
#else
  const VF y = (VF)_mm_rsqrt_ps((__m128)x);
#endif
  const VF root = x * y;
  return root + (0.5f * y) * (x - root * root);
#else
  VF root;
  for (int i = 0; i < kLanes; ++i) root[i] = __builtin_sqrtf(x[i]);
  return root;
#endif
}

}  // namespace
