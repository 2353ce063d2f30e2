// k-means of millions of points in the plane, exactly, on a grid: cells that lie wholly in one cluster's
// region count with their sums, and only the points of cells on a border between regions are looked at.
#pragma once

#include <cstdint>
#include <vector>

#include "points.hpp"
#include "points_grid_kernels.hpp"

namespace pymtg {

class PointGrid {
 public:
  // `points` must be two-dimensional; they are copied in the order of their cells. Built once for all starts.
  PointGrid(const Points& points, int threads);

  // Greedy k-means++ seeds over the cells' means, weighed by their points, then settled by Lloyd's steps on
  // those means. At most `wanted`; fewer where there are fewer cells with points.
  std::vector<double> seed(std::int64_t wanted, Random& random) const;

  // Sum over the points of their squared distances to the offset.
  double sum_of_squares() const;

  // As pymtg::lloyd, up to the order in which sums are taken.
  LloydSummary lloyd(const LloydOptions& options, std::vector<double>& centers, int threads) const;

  // The clusters of the points, in the order of `points`, which must be those that the grid was built from.
  void labels(const Points& points, const std::vector<double>& centers, std::int32_t* out, int threads) const;

 private:
  // Per centre: number, sum of x, sum of y and sum of squared distances of its points.
  using Totals = std::vector<double>;

  std::vector<std::int32_t> owners(const PlaneCenters& centers, std::int64_t first, std::int64_t count) const;
  void sort_points(const Points& points, int threads);
  void sum_cells(int threads);
  void settle(std::vector<double>& centers) const;
  Totals assign(const std::vector<double>& centers, int threads) const;
  void fill_empty(const Totals& totals, std::vector<double>& centers) const;
  std::int64_t chunks() const;
  std::int64_t chunk_begin(std::int64_t chunk) const;
  std::int64_t cells() const { return static_cast<std::int64_t>(count_.size()); }

  std::int64_t n_, side_;
  double low_[2], step_[2], half_[2];
  std::vector<std::int64_t> start_;          // of each cell that has points; n at the end
  std::vector<double> middle_x_, middle_y_;  // of the cells
  std::vector<double> count_, sum_x_, sum_y_, square_, mean_x_, mean_y_;  // of the cells' points
  std::vector<double> xy_;                                                // the points, cell by cell
  std::vector<std::int32_t> cell_of_;   // of the points in their original order: row * side + column
  std::vector<std::int32_t> position_;  // of each cell that has points: row * side + column
};

}  // namespace pymtg
