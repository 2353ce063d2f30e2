// A small seeded generator: the same stream on every platform, one per restart.
#pragma once

#include <cstdint>

namespace pymtg {

// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
class Random {
 public:
  // Stream number `stream` of a seed.
  Random(std::uint64_t seed, std::uint64_t stream) : state_(seed) {
    state_ = next() + stream * 0xD1342543DE82EF95ull;
  }

  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }

  // Uniform on [0, 1).
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }

  // Uniform on 0 .. n - 1.
  std::int64_t below(std::int64_t n) {
    const auto at = static_cast<std::int64_t>(uniform() * static_cast<double>(n));
    return at < n ? at : n - 1;
  }

 private:
  std::uint64_t state_;
};

}  // namespace pymtg
