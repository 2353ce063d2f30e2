// pymtg._core: each bindings_*.cpp registers its own functions; they check arrays, release the GIL and call,
// no more.
#include "bindings.hpp"

#include "isa.hpp"

PYBIND11_MODULE(_core, m) {
  m.doc() = "Compiled kernels of pymtg. Arguments are validated by the Python wrappers.";
  m.def(
      "isa", [] { return pymtg::isa_name(pymtg::current_isa()); },
      "Instruction set in use: base, avx2 or avx512 (PYMTG_ISA forces one).");
  m.def("has_openmp", &pymtg::has_openmp, "Whether this build runs on several threads.");
  register_cross_entropy(m);
  register_cluster(m);
}
