#include "fuzzy.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kmeans_kernels.hpp"

namespace pymtg {
namespace {

using Index = std::int64_t;

void fuzzify_row(const double* squared, Index clusters, double exponent, double* out) {
  const double nearest = *std::min_element(squared, squared + clusters);
  double total = 0;
  for (Index k = 0; k < clusters; ++k) {
    if (nearest > 0)
      out[k] = std::exp(-exponent * std::log(squared[k] / nearest));
    else
      out[k] = squared[k] <= 0 ? 1.0 : 0.0;
    total += out[k];
  }
  for (Index k = 0; k < clusters; ++k) out[k] /= total;
}

// coefficients[k][j] = u_jk^m / sum_j u_jk^m. A cluster that no point belongs to starts anew at the point
// that lies farthest from all centroids.
void centroid_coefficients(const double* memberships, Index n, Index clusters, double fuzzifier,
                           const double* squared, double* coefficients) {
  for (Index k = 0; k < clusters; ++k) {
    double* row = coefficients + k * n;
    double total = 0;
    for (Index j = 0; j < n; ++j) total += row[j] = std::pow(memberships[j * clusters + k], fuzzifier);
    if (total < 1e-200) {
      Index farthest = 0;
      double most = -1;
      for (Index j = 0; j < n; ++j) {
        const double nearest = *std::min_element(squared + j * clusters, squared + (j + 1) * clusters);
        if (nearest > most) {
          most = nearest;
          farthest = j;
        }
      }
      std::fill(row, row + n, 0.0);
      row[farthest] = total = 1;
    }
    for (Index j = 0; j < n; ++j) row[j] /= total;
  }
}

// squared[i][k] = sum_j a_kj D_ij - (1/2) sum_jl a_kj a_kl D_jl
void distances_to_combinations(const double* distances, Index n, const double* coefficients, Index clusters,
                               double* squared, int threads) {
  const Isa isa = current_isa();
  const auto add_four = PYMTG_PICK_ISA(isa, add_four_rows);
  const auto add = PYMTG_PICK_ISA(isa, add_row);
  std::vector<double> all_sums(clusters * n);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (Index k = 0; k < clusters; ++k) {
    double* sums = &all_sums[k * n];
    const double* a = coefficients + k * n;
    Index j = 0;
    for (; j + 4 <= n; j += 4) add_four(sums, distances + j * n, n, a + j, n);
    for (; j < n; ++j) add(sums, distances + j * n, a[j], n);
    double within = 0;
    for (Index i = 0; i < n; ++i) within += a[i] * sums[i];
    for (Index i = 0; i < n; ++i) squared[i * clusters + k] = std::max(0.0, sums[i] - within / 2);
  }
}

}  // namespace

void fuzzify(const double* squared, Index n, Index clusters, double fuzzifier, double* out, int threads) {
  const double exponent = 1 / (fuzzifier - 1);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (Index i = 0; i < n; ++i) fuzzify_row(squared + i * clusters, clusters, exponent, out + i * clusters);
}

FuzzySummary fuzzy_distances(const double* distances, Index n, const std::int32_t* labels, Index clusters,
                             double fuzzifier, double tol, Index max_iter, double* memberships,
                             double* squared, double* coefficients, int threads) {
  std::fill(memberships, memberships + n * clusters, 0.0);
  std::fill(squared, squared + n * clusters, 0.0);
  for (Index i = 0; i < n; ++i) memberships[i * clusters + labels[i]] = 1;
  std::vector<double> before(n * clusters);
  FuzzySummary summary{0, 0, false};
  while (summary.iterations < max_iter && !summary.converged) {
    std::copy(memberships, memberships + n * clusters, before.begin());
    centroid_coefficients(memberships, n, clusters, fuzzifier, squared, coefficients);
    distances_to_combinations(distances, n, coefficients, clusters, squared, threads);
    fuzzify(squared, n, clusters, fuzzifier, memberships, threads);
    double change = 0;
    for (Index i = 0; i < n * clusters; ++i) change = std::max(change, std::abs(memberships[i] - before[i]));
    ++summary.iterations;
    summary.converged = change <= tol;
  }
  for (Index i = 0; i < n * clusters; ++i)
    summary.objective += std::pow(memberships[i], fuzzifier) * squared[i];
  return summary;
}

}  // namespace pymtg
