// k-means of many points in few dimensions, by Lloyd's algorithm on the points themselves.
#pragma once

#include <cstdint>
#include <vector>

#include "points_kernels.hpp"
#include "random.hpp"

namespace pymtg {

struct LloydOptions {
  std::int64_t max_iter;
  double tol;  // stop when the centres' squared shifts sum to this or less
};

struct LloydSummary {
  double inertia;
  std::int64_t iterations;
  bool converged;
};

// The mean of each coordinate, in float64.
void coordinate_means(const Points& points, double* means, int threads);

// Greedy k-means++ seeds (relative to points.offset), at most `wanted`; fewer when no more distinct points
// are found.
std::vector<double> seed_points(const Points& points, std::int64_t wanted, Random& random, int threads);

// Lloyd's algorithm from `centers` [number][dims] (relative to points.offset), which it moves. A cluster that
// loses its points starts anew at the point farthest from its centre; each has one in the end. labels [n] and
// inertia are those of the centres returned. Needs `number` distinct points.
LloydSummary lloyd(const Points& points, const LloydOptions& options, std::vector<double>& centers,
                   std::int32_t* labels, int threads);

// out[n][number]: squared distances to `centers` (relative to points.offset).
void distances_to_centers(const Points& points, const double* centers, std::int64_t number, double* out,
                          int threads);

// The best of several starts, on a grid where asked for (the points must then be in the plane). Fills centers
// (relative to points.offset; fewer than wanted where the points are fewer) and labels, clusters numbered by
// their first point. `tol` is relative to the mean variance of the coordinates.
struct KMeansPointsOptions {
  std::int64_t clusters, starts, max_iter;
  double tol;
  std::uint64_t seed;
  bool grid;
};
LloydSummary kmeans_points(const Points& points, const KMeansPointsOptions& options,
                           std::vector<double>& centers, std::int32_t* labels, int threads);

struct FuzzyPointsSummary {
  double objective;
  std::int64_t iterations;
  bool converged;
};

// Fuzzy c-means on the points from `centers`, which it moves, until no membership changes by more than tol;
// memberships [n][number] belong to the centres returned.
FuzzyPointsSummary fuzzy_points(const Points& points, double fuzzifier, double tol, std::int64_t max_iter,
                                std::vector<double>& centers, double* memberships, int threads);

}  // namespace pymtg
