#include "isa.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace pymtg {

Isa widest_isa() {
#ifdef PYMTG_X86_LEVELS
  __builtin_cpu_init();
  // What -march=skylake-avx512 and -march=haswell let the compiler emit.
  const bool haswell = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                       __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  if (haswell && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (haswell) return Isa::avx2;
#endif
  return Isa::base;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "base";
  }
}

static Isa chosen_isa() {
  const Isa widest = widest_isa();
  const char* wanted = std::getenv("PYMTG_ISA");
  if (wanted == nullptr || *wanted == '\0') return widest;
  for (Isa isa : {Isa::base, Isa::avx2, Isa::avx512}) {
    if (std::string(wanted) != isa_name(isa)) continue;
    if (isa <= widest) return isa;
    throw std::invalid_argument(std::string("PYMTG_ISA=") + wanted +
                                ": this machine or build goes no further than " + isa_name(widest));
  }
  throw std::invalid_argument(std::string("PYMTG_ISA must be one of base, avx2, avx512; got ") + wanted);
}

Isa current_isa() {
  static const Isa isa = chosen_isa();
  return isa;
}

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

}  // namespace pymtg
