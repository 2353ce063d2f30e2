// How a data map packs mean, standard deviation and correctness of one (sample, task) into two 32-bit words.
// The same layout is written down for all backends in docs/architecture.md, "What a data map holds", and in
// pymtg/_words.py.
//
// Word 0: 26 bits of the mean, above them the 6 low bits of the number of right predictions. Word 1: 26 bits
// of the standard deviation (ddof 0), above them the 6 high bits of that number. A value v in [0, 1] is kept
// as the low 26 bits of the float v + 2^-7, whose upper bits are known: it lies within eight binades. The sum
// is rounded like any float32 sum, so large values keep float32's spacing and small ones an absolute spacing
// below 1e-9.
#pragma once

#include "simd.hpp"

namespace {

constexpr int kValueBits = 26;
constexpr int32_t kValueMask = (1 << kValueBits) - 1;
constexpr int32_t kOneRight = 1 << kValueBits;
constexpr int32_t kMostCounted =
    4095;  // right predictions are counted over a sample's first 4,095 observations
constexpr float kShift = 0x1p-7f;
constexpr int32_t kShiftBits = (127 - 7) << 23;  // bits of kShift; its low 26 bits are zero

PYMTG_INLINE VF unpack(VI word) { return as_float((word & kValueMask) | kShiftBits) - kShift; }
// The value's bits, the count's bits of the old word.
PYMTG_INLINE VI pack(VF value, VI old) { return (as_int(value + kShift) & kValueMask) | (old & ~kValueMask); }

// One Welford step (Welford 1962) of up to kLanes tasks. gold: probabilities, the sign bit set where the
// prediction is right; inverse: 1 / n, n counting this observation; right_step: kOneRight where right
// predictions are still counted, else 0. `Missing`: NaN in gold leaves the words alone.
template <bool Missing>
PYMTG_INLINE void record_vector(int32_t* mean_words, int32_t* std_words, int64_t num_left, VI gold,
                                VF inverse, VI right_step) {
  const VI w0 = load_some<VI>(mean_words, num_left);
  const VI w1 = load_some<VI>(std_words, num_left);
  const VF mean = unpack(w0), std = unpack(w1);
  const VF p = vabs(as_float(gold));
  const VF delta = p - mean;
  const VF step = delta * inverse;
  const VF new_mean = mean + step;
  const VF variance = (std * std) * (1.0f - inverse) + step * (p - new_mean);

  const VI right = (gold >> 31) & right_step;
  const VI carries = (w0 & ~kValueMask) == static_cast<int32_t>(63u << kValueBits) ? right : VI{};
  const VI n0 = (VI)((VU)pack(new_mean, w0) + (VU)right);
  const VI n1 = (VI)((VU)pack(fast_sqrt(variance), w1) + (VU)carries);
  const VI there = p == p;
  store_some(mean_words, Missing ? (there ? n0 : w0) : n0, num_left);
  store_some(std_words, Missing ? (there ? n1 : w1) : n1, num_left);
}

}  // namespace
