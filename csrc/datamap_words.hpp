// How a data map packs mean, standard deviation and correctness of one (sample, task) into two 32-bit words. The same
// layout is written down for all backends in docs/architecture.md, "What a data map holds", and in pymtg/_reference.py.
//
// Word 0: 26 bits of the mean, 6 low bits of the number of right predictions. Word 1: 26 bits of the standard deviation
// (ddof 0), 6 high bits of that number. A value v is kept as bits(v + c) - bits(c) with c = 2^-7 (mean) or 2^-8
// (standard deviation): the sum is rounded like any float32 sum, so large values keep float32's spacing and small ones
// an absolute spacing below 1e-9.
#pragma once

#include "simd.hpp"

namespace {

constexpr int kValueBits = 26;
constexpr int32_t kValueMask = (1 << kValueBits) - 1;
constexpr int32_t kMostCounted = 4095;  // right predictions are counted over a sample's first 4,095 observations
constexpr float kMeanShift = 0x1p-7f;
constexpr float kStdShift = 0x1p-8f;
constexpr int32_t kMeanBase = (127 - 7) << 23;
constexpr int32_t kStdBase = (127 - 8) << 23;

typedef uint32_t VU __attribute__((vector_size(64)));

PYMTG_INLINE VF vsqrt(VF x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int i = 0; i < kLanes; ++i) lanes[i] = __builtin_sqrtf(lanes[i]);
  return load<VF>(lanes);
}

// One Welford step (Welford 1962) of up to 16 tasks: gold holds signed probabilities, NaN where nothing is to be done;
// inverse is 1 / n, n counting this observation.
PYMTG_INLINE void record_vector(int32_t* mean_words, int32_t* std_words, int64_t num_left, VI gold, VF inverse,
                                VI counted) {
  const VI w0 = load_some<VI>(mean_words, num_left);
  const VI w1 = load_some<VI>(std_words, num_left);
  const VF mean = as_float((w0 & kValueMask) + kMeanBase) - kMeanShift;
  const VF std = as_float((w1 & kValueMask) + kStdBase) - kStdShift;
  VI right = (VI)((VU)w0 >> kValueBits) | ((VI)((VU)w1 >> kValueBits) << 6);

  const VF p = vabs(as_float(gold));
  const VF delta = p - mean;
  const VF new_mean = mean + delta * inverse;
  const VF variance = (std * std) * (1.0f - inverse) + (delta * inverse) * (p - new_mean);
  const VF new_std = vsqrt(variance);
  right -= (gold < 0) & counted;  // a true lane is -1

  const VI n0 = (as_int(new_mean + kMeanShift) - kMeanBase) | (VI)((VU)right << kValueBits);
  const VI n1 = (as_int(new_std + kStdShift) - kStdBase) | (VI)((VU)(right >> 6) << kValueBits);
  const VI there = p == p;
  store_some(mean_words, there ? n0 : w0, num_left);
  store_some(std_words, there ? n1 : w1, num_left);
}

}  // namespace
