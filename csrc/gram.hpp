// Gram matrices of a few points in very many dimensions, accumulated slab by slab in float64.
#pragma once

#include <cstdint>

#include "gram_kernels.hpp"

namespace pymtg {

// gram[n][n] += sum over `features` features of (x_i - mean)(x_j - mean), the mean of each feature being that
// over the n points. `gram` must be symmetric. Products and sums are float64; each entry is summed in one
// fixed order, so that the result does not depend on the number of threads, and equal points get equal rows
// bit for bit.
void gram_add(const Slab& slab, std::int64_t features, double* gram, int threads);

}  // namespace pymtg
