// One (row, task): loss, slope, gold probability, and the data map's update.
#pragma once

#include <cmath>

#include "device.cuh"

namespace pymtg {
namespace cuda {

constexpr int32_t kSign = INT32_MIN;
constexpr int32_t kMissingGold = 0x7fc00000;  // NaN

// The sign bit says that the prediction is right.
PYMTG_DEVICE float signed_gold(float probability, bool right) {
  return as_float(as_int(probability) | (right ? kSign : 0));
}

struct Logistic {
  float loss, slope, gold;
};

// Logistic loss of the logit x against y in {0, 1}. With e = exp(-|x|) nothing overflows, and 1 - p is e / (1
// + e) without a subtraction. The linear part is written as torch has it: infinite logits give the same there
// and here.
PYMTG_DEVICE Logistic logistic(float x, int y) {
  const bool positive = y > 0;
  const float e = expf(-fabsf(x));
  const float larger = 1.0f / (1.0f + e), smaller = e * larger;
  const bool agrees = (positive ? x : -x) >= 0.0f;
  const float p = agrees ? larger : smaller, q = agrees ? smaller : larger;
  const float linear = (positive ? 0.0f : 1.0f) * x - (x < 0.0f ? x : 0.0f);
  return {linear + log1pf(e), positive ? -q : q, signed_gold(p, (x > 0.0f) == positive)};
}

// The largest of the logits and the first class that has it; NaN is passed on.
struct Top {
  float value;
  int best;
};

PYMTG_DEVICE Top higher(Top a, float value, int index) {
  const bool above = value > a.value || value != value;
  return {above ? value : a.value, above ? index : a.best};
}

PYMTG_DEVICE Top higher(Top a, Top b) {
  const bool other = b.value > a.value || b.value != b.value || (b.value == a.value && b.best < a.best);
  return other ? b : a;
}

// A data map packs mean, standard deviation and the number of right predictions of one (sample, task) into
// two words: see docs/architecture.md, "What a data map holds", and csrc/datamap_words.hpp.
constexpr int kValueBits = 26;
constexpr int32_t kValueMask = (1 << kValueBits) - 1;
constexpr int kMostCounted = 4095;
constexpr float kShift = 1.0f / 128;
constexpr int32_t kShiftBits = (127 - 7) << 23;

PYMTG_DEVICE float unpack(int32_t word) { return as_float((word & kValueMask) | kShiftBits) - kShift; }

// The value's bits, the count's bits of the old word.
PYMTG_DEVICE int32_t pack(float value, int32_t old) {
  return (as_int(value + kShift) & kValueMask) | (old & ~kValueMask);
}

struct Words {
  int32_t mean, std;
};

// One step of Welford's update (Welford 1962); n counts this observation.
PYMTG_DEVICE Words observe(Words words, float gold, int n) {
  const float inverse = 1.0f / static_cast<float>(n);
  const float mean = unpack(words.mean), std = unpack(words.std), p = fabsf(gold);
  const float delta = p - mean, step = delta * inverse, new_mean = mean + step;
  const float variance = std * std * (1.0f - inverse) + step * (p - new_mean);
  const bool right = as_int(gold) < 0 && n <= kMostCounted;
  const bool carries = right && (words.mean & ~kValueMask) == static_cast<int32_t>(63u << kValueBits);
  const uint32_t one = 1u << kValueBits;
  return {static_cast<int32_t>(static_cast<uint32_t>(pack(new_mean, words.mean)) + (right ? one : 0u)),
          static_cast<int32_t>(static_cast<uint32_t>(pack(sqrtf(fmaxf(variance, 0.0f)), words.std)) +
                               (carries ? one : 0u))};
}

}  // namespace cuda
}  // namespace pymtg
