// Which build of the hot loops runs: the widest that this processor and the environment allow.
#pragma once

namespace pymtg {

enum class Isa { base = 0, avx2 = 1, avx512 = 2 };

// The widest instruction set that both this build and this processor have.
Isa widest_isa();

// widest_isa(), or what the environment variable PYMTG_ISA (base, avx2, avx512) asked for when first called.
// Throws std::invalid_argument for another word or for one this machine cannot run.
Isa current_isa();

const char* isa_name(Isa isa);

bool has_openmp();

}  // namespace pymtg

// The hot sources define their entry points inside PYMTG_ISA_NAMESPACE, once per instruction set; a header
// declares them for all with PYMTG_DECLARE_FOR_EACH_ISA and the caller picks one with
// PYMTG_PICK_ISA(current_isa(), name).
#ifdef PYMTG_X86_LEVELS
#define PYMTG_DECLARE_FOR_EACH_ISA(declaration) \
  namespace base {                              \
  declaration;                                  \
  }                                             \
  namespace avx2 {                              \
  declaration;                                  \
  }                                             \
  namespace avx512 {                            \
  declaration;                                  \
  }
#define PYMTG_PICK_ISA(isa, name) \
  ((isa) == ::pymtg::Isa::avx512 ? avx512::name : (isa) == ::pymtg::Isa::avx2 ? avx2::name : base::name)
#else
#define PYMTG_DECLARE_FOR_EACH_ISA(declaration) \
  namespace base {                              \
  declaration;                                  \
  }
#define PYMTG_PICK_ISA(isa, name) (base::name)
#endif
