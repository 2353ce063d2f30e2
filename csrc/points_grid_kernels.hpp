// The hot loops behind csrc/points_grid.hpp, built once per instruction set.
#pragma once

#include <cstdint>

#include "isa.hpp"

namespace pymtg {

struct PlaneCenters {
  const double* x;
  const double* y;
  std::int64_t number;
};

// The nearest centre of each point of the plane (the lowest among equals) and its squared distance.
PYMTG_DECLARE_FOR_EACH_ISA(void nearest_in_plane(const double* x, const double* y, std::int64_t count,
                                                 const PlaneCenters& centers, std::int32_t* label,
                                                 double* squared))

// owner[i]: the centre that is nearest to every point of the rectangle around (x[i], y[i]) with half sides
// half_x and half_y, or -1 where there may be more than one.
PYMTG_DECLARE_FOR_EACH_ISA(void own_cells(const double* x, const double* y, std::int64_t count, double half_x,
                                          double half_y, const PlaneCenters& centers, std::int32_t* owner))

// sum over i of weight[i] * min(closest[i], |(x, y)_i - (cx, cy)|^2)
PYMTG_DECLARE_FOR_EACH_ISA(double plane_potential(const double* x, const double* y, const double* weight,
                                                  const double* closest, std::int64_t count, double cx,
                                                  double cy))

}  // namespace pymtg
