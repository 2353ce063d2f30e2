#pragma once
#include <pybind11/pybind11.h>

void register_cross_entropy(pybind11::module_& m);
void register_cluster(pybind11::module_& m);
