// Fuzzy memberships, and fuzzy c-means of points that are known by their squared distances.
#pragma once

#include <cstdint>

namespace pymtg {

// out[n][clusters]: u_ik = d_ik^(-2/(m-1)) / sum_j d_ij^(-2/(m-1)) from squared distances, as a softmax of
// -log(d^2) / (m - 1). A point at distance 0 belongs wholly to the cluster (in equal shares if there are
// several).
void fuzzify(const double* squared, std::int64_t n, std::int64_t clusters, double fuzzifier, double* out,
             int threads);

struct FuzzySummary {
  double objective;  // sum of u^m d^2
  std::int64_t iterations;
  bool converged;
};

// Bezdek's alternation from a hard partition, until no membership changes by more than tol. Fills memberships
// [n][clusters], squared distances to the centroids [n][clusters] and the centroids' coefficients
// [clusters][n] (each centroid is the sum of coefficient times point). See csrc/kmeans.hpp for `distances`.
FuzzySummary fuzzy_distances(const double* distances, std::int64_t n, const std::int32_t* labels,
                             std::int64_t clusters, double fuzzifier, double tol, std::int64_t max_iter,
                             double* memberships, double* squared, double* coefficients, int threads);

}  // namespace pymtg
