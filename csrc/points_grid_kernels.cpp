#include "points_grid_kernels.hpp"

namespace pymtg {
namespace PYMTG_ISA_NAMESPACE {
namespace {

using Index = std::int64_t;

constexpr Index kBlock = 64;

// Nearest centre of a block of points: its squared distance, number and coordinates.
struct Nearest {
  double squared[kBlock], number[kBlock], x[kBlock], y[kBlock];
};

inline void find_nearest(const double* x, const double* y, Index width, const PlaneCenters& centers,
                         Nearest& nearest) {
  for (Index i = 0; i < width; ++i) {
    const double dx = x[i] - centers.x[0], dy = y[i] - centers.y[0];
    nearest.squared[i] = dx * dx + dy * dy;
    nearest.number[i] = 0;
  }
  for (Index k = 1; k < centers.number; ++k) {
    const double cx = centers.x[k], cy = centers.y[k], number = static_cast<double>(k);
    for (Index i = 0; i < width; ++i) {
      const double dx = x[i] - cx, dy = y[i] - cy;
      const double squared = dx * dx + dy * dy;
      const bool closer = squared < nearest.squared[i];
      nearest.squared[i] = closer ? squared : nearest.squared[i];
      nearest.number[i] = closer ? number : nearest.number[i];
    }
  }
}

inline double absolute(double v) { return v < 0 ? -v : v; }

}  // namespace

void nearest_in_plane(const double* x, const double* y, Index count, const PlaneCenters& centers,
                      std::int32_t* label, double* squared) {
  Nearest nearest;
  for (Index i0 = 0; i0 < count; i0 += kBlock) {
    const Index width = count - i0 < kBlock ? count - i0 : kBlock;
    find_nearest(x + i0, y + i0, width, centers, nearest);
    for (Index i = 0; i < width; ++i) {
      label[i0 + i] = static_cast<std::int32_t>(nearest.number[i]);
      squared[i0 + i] = nearest.squared[i];
    }
  }
}

// With b the nearest centre of the midpoint, |p - k|^2 - |p - b|^2 is linear in p: over the rectangle it
// falls below its value at the midpoint by at most 2 (|kx - bx| half_x + |ky - by| half_y).
void own_cells(const double* x, const double* y, Index count, double half_x, double half_y,
               const PlaneCenters& centers, std::int32_t* owner) {
  Nearest nearest;
  for (Index i0 = 0; i0 < count; i0 += kBlock) {
    const Index width = count - i0 < kBlock ? count - i0 : kBlock;
    find_nearest(x + i0, y + i0, width, centers, nearest);
    double
        rivals[kBlock];  // centres that may be nearest somewhere in the cell, the nearest itself among them
    for (Index i = 0; i < width; ++i) {
      const Index k = static_cast<Index>(nearest.number[i]);
      nearest.x[i] = centers.x[k];
      nearest.y[i] = centers.y[k];
      rivals[i] = 0;
    }
    for (Index k = 0; k < centers.number; ++k) {
      const double cx = centers.x[k], cy = centers.y[k];
      for (Index i = 0; i < width; ++i) {
        const double dx = x[i0 + i] - cx, dy = y[i0 + i] - cy;
        const double squared = dx * dx + dy * dy;
        const double fall = 2 * (absolute(cx - nearest.x[i]) * half_x + absolute(cy - nearest.y[i]) * half_y);
        const bool beaten = squared - nearest.squared[i] > fall + 1e-12 * squared;
        rivals[i] += beaten ? 0.0 : 1.0;
      }
    }
    for (Index i = 0; i < width; ++i)
      owner[i0 + i] = rivals[i] == 1 ? static_cast<std::int32_t>(nearest.number[i]) : -1;
  }
}

double plane_potential(const double* x, const double* y, const double* weight, const double* closest,
                       Index count, double cx, double cy) {
  constexpr int kSums = 16;
  double lane[kSums] = {};
  double total = 0;
  for (Index i0 = 0; i0 < count; i0 += kSums) {
    if (i0 + kSums <= count) {
      for (int l = 0; l < kSums; ++l) {
        const double dx = x[i0 + l] - cx, dy = y[i0 + l] - cy;
        const double squared = dx * dx + dy * dy;
        lane[l] += weight[i0 + l] * (squared < closest[i0 + l] ? squared : closest[i0 + l]);
      }
    } else {
      for (Index i = i0; i < count; ++i) {
        const double dx = x[i] - cx, dy = y[i] - cy;
        const double squared = dx * dx + dy * dy;
        total += weight[i] * (squared < closest[i] ? squared : closest[i]);
      }
    }
  }
  for (int l = 0; l < kSums; ++l) total += lane[l];
  return total;
}

}  // namespace PYMTG_ISA_NAMESPACE
}  // namespace pymtg
