#include "bindings.hpp"

void register_cross_entropy(pybind11::module_& m) { (void)m; }
