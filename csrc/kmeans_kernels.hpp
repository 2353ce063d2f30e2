// The hot loops behind csrc/kmeans.hpp, built once per instruction set.
#pragma once

#include <cstdint>

#include "isa.hpp"

namespace pymtg {

// sums[i] += factor * row[i]
PYMTG_DECLARE_FOR_EACH_ISA(void add_row(double* sums, const double* row, double factor, std::int64_t n))

// The same with a row of floats.
PYMTG_DECLARE_FOR_EACH_ISA(void add_float_row(double* sums, const float* row, double factor, std::int64_t n))

// sums[i] += factors[0] * rows[0][i] + ... + factors[3] * rows[3][i], the rows `stride` doubles apart.
PYMTG_DECLARE_FOR_EACH_ISA(void add_four_rows(double* sums, const double* rows, std::int64_t stride,
                                              const double* factors, std::int64_t n))

// sum of min(a[i], b[i])
PYMTG_DECLARE_FOR_EACH_ISA(double sum_of_minima(const double* a, const double* b, std::int64_t n))

// For each point i the cluster k that minimises value = sums[k][i] * scale[k] - shift[k] (the lowest k among
// equals), and that value. sums is [clusters][n].
PYMTG_DECLARE_FOR_EACH_ISA(void nearest_clusters(const double* sums, const double* scale, const double* shift,
                                                 std::int64_t clusters, std::int64_t n, std::int32_t* label,
                                                 double* value))

}  // namespace pymtg
