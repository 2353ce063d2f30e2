// The hot loops behind csrc/points.hpp and csrc/points_grid.hpp, built once per instruction set.
#pragma once

#include <cstdint>

#include "isa.hpp"

namespace pymtg {

// n points of `dims` coordinates, row after row. Coordinates are taken relative to `offset` [dims].
struct Points {
  const void* data;
  bool is_double;
  std::int64_t n, dims;
  const double* offset;
};

// out[count][centers]: squared distances, by differences in float64, of points first .. first + count - 1 to
// centers[number][dims] (relative to the offset too). `scratch` holds 16 * number doubles.
PYMTG_DECLARE_FOR_EACH_ISA(void point_distances(const Points& points, std::int64_t first, std::int64_t count,
                                                const double* centers, std::int64_t number, double* scratch,
                                                double* out))

// The nearest centre (the lowest among equals) of each of those points and its squared distance. Adds the
// points to sums[number][dims] and count_of[number]; returns how many labels changed.
PYMTG_DECLARE_FOR_EACH_ISA(std::int64_t assign_points(
    const Points& points, std::int64_t first, std::int64_t count, const double* centers, std::int64_t number,
    double* scratch, std::int32_t* label, double* nearest, double* sums, double* count_of))

}  // namespace pymtg
