// k-means of n points that are known by their squared distances alone: an n x n matrix D with
// D[i][j] = |x_i - x_j|^2, which a Gram matrix gives. For a cluster A with sums S_iA = sum_{j in A} D_ij and
// W_A = sum_{i in A} S_iA, the squared distance of x_i to its mean is S_iA / |A| - W_A / (2 |A|^2), and A's
// inertia is W_A / (2 |A|). Working on differences keeps the digits of points that lie close together.
#pragma once

#include <cstdint>

namespace pymtg {

// D[i][j] = G[i][i] + G[j][j] - 2 G[i][j], clamped to 0 within rounding.
void squared_distances(const double* gram, std::int64_t n, double* distances, int threads);

// The number of points that differ, and first[i], the first point that equals point i.
std::int64_t distinct_points(const double* distances, std::int64_t n, std::int32_t* first);

struct KMeansOptions {
  std::int64_t clusters;
  std::int64_t starts;
  std::int64_t max_iter;
  std::uint64_t seed;
  bool local_search;  // Hartigan's single-point moves after Lloyd, then swaps of clusters
};

struct KMeansSummary {
  double inertia;
  std::int64_t iterations;  // of the winning start: Lloyd's steps and passes of single-point moves
  bool converged;
};

// The best of several starts (greedy k-means++ seeds, Lloyd, Hartigan and Wong 1979), improved by swaps
// of clusters where local_search is on; clusters are numbered by their first point. Needs at least `clusters`
// distinct points; every cluster then has one.
KMeansSummary kmeans_distances(const double* distances, std::int64_t n, const KMeansOptions& options,
                               std::int32_t* labels, int threads);

// out[n][clusters]: the squared distance of each point to each cluster's mean; every cluster must have a
// point.
void centroid_distances(const double* distances, std::int64_t n, const std::int32_t* labels,
                        std::int64_t clusters, double* out);

// out[combinations][dims] = coefficients[combinations][n] times points [n][dims], summed in float64, zeros
// skipped.
void combine_points(const void* points, bool is_double, std::int64_t n, std::int64_t dims,
                    const double* coefficients, std::int64_t combinations, double* out, int threads);

// Mean silhouette (Rousseeuw 1987) of a clustering without empty clusters, 0 for a point alone in its
// cluster. `distances` are the plain ones, not squared.
double silhouette(const double* distances, std::int64_t n, const std::int32_t* labels, std::int64_t clusters);

}  // namespace pymtg
