// The restarts of k-means on points: direct or on a grid.
#include <algorithm>

#include "points.hpp"
#include "points_grid.hpp"

namespace pymtg {
namespace {

using Index = std::int64_t;

// The variance of the coordinates, averaged over them; the offset holds their means.
double mean_variance(const Points& points, int threads) {
  const std::vector<double> origin(points.dims);
  constexpr Index kBlock = 4096;
  const Index blocks = (points.n + kBlock - 1) / kBlock;
  std::vector<double> parts(blocks);
#pragma omp parallel num_threads(threads)
  {
    std::vector<double> squared(kBlock);
    double scratch[16];
    const auto kernel = PYMTG_PICK_ISA(current_isa(), point_distances);
#pragma omp for schedule(dynamic)
    for (Index b = 0; b < blocks; ++b) {
      const Index count = std::min(kBlock, points.n - b * kBlock);
      kernel(points, b * kBlock, count, origin.data(), 1, scratch, squared.data());
      for (Index i = 0; i < count; ++i) parts[b] += squared[i];
    }
  }
  double total = 0;
  for (double part : parts) total += part;
  return total / static_cast<double>(points.n * points.dims);
}

void number_by_first_point(std::vector<double>& centers, Index dims, std::int32_t* labels, Index n) {
  const Index number = static_cast<Index>(centers.size()) / dims;
  std::vector<std::int32_t> name(number, -1);
  std::int32_t next = 0;
  for (Index i = 0; i < n; ++i) {
    if (name[labels[i]] < 0) name[labels[i]] = next++;
    labels[i] = name[labels[i]];
  }
  std::vector<double> ordered(centers.size());
  for (Index k = 0; k < number; ++k) {
    if (name[k] < 0) name[k] = next++;
    std::copy(&centers[k * dims], &centers[k * dims] + dims, &ordered[name[k] * dims]);
  }
  centers = ordered;
}

LloydSummary best_of_starts(const Points& points, const KMeansPointsOptions& options,
                            std::vector<double>& centers, std::int32_t* labels, int threads) {
  const LloydOptions lloyd_options{options.max_iter, options.tol * mean_variance(points, threads)};
  std::vector<std::int32_t> own(options.starts > 1 ? points.n : 0);
  LloydSummary best{0, 0, false};
  for (Index s = 0; s < options.starts; ++s) {
    Random random(options.seed, static_cast<std::uint64_t>(s));
    std::vector<double> candidate = seed_points(points, options.clusters, random, threads);
    const LloydSummary summary =
        lloyd(points, lloyd_options, candidate, s == 0 ? labels : own.data(), threads);
    if (s > 0 && !(summary.inertia < best.inertia)) continue;
    best = summary;
    centers = candidate;
    if (s > 0) std::copy(own.begin(), own.end(), labels);
  }
  return best;
}

// Starts side by side where there are several, else one start on all threads: the result is the same.
LloydSummary best_on_grid(const Points& points, const KMeansPointsOptions& options,
                          std::vector<double>& centers, std::int32_t* labels, int threads) {
  const PointGrid grid(points, threads);
  const double variance = grid.sum_of_squares() / static_cast<double>(points.n * points.dims);
  const LloydOptions lloyd_options{options.max_iter, options.tol * variance};
  std::vector<LloydSummary> summaries(options.starts);
  std::vector<std::vector<double>> candidates(options.starts);
  const int outer = static_cast<int>(std::min<Index>(threads, options.starts));
  const int inner = outer > 1 ? 1 : threads;
#pragma omp parallel for num_threads(outer) schedule(dynamic)
  for (Index s = 0; s < options.starts; ++s) {
    Random random(options.seed, static_cast<std::uint64_t>(s));
    candidates[s] = grid.seed(options.clusters, random);
    if (static_cast<Index>(candidates[s].size()) < 2 * options.clusters)
      candidates[s] = seed_points(points, options.clusters, random, inner);
    summaries[s] = grid.lloyd(lloyd_options, candidates[s], inner);
  }
  Index best = 0;
  for (Index s = 1; s < options.starts; ++s)
    if (summaries[s].inertia < summaries[best].inertia) best = s;
  centers = candidates[best];
  grid.labels(points, centers, labels, threads);
  return summaries[best];
}

}  // namespace

LloydSummary kmeans_points(const Points& points, const KMeansPointsOptions& options,
                           std::vector<double>& centers, std::int32_t* labels, int threads) {
  const LloydSummary best = options.grid ? best_on_grid(points, options, centers, labels, threads)
                                         : best_of_starts(points, options, centers, labels, threads);
  number_by_first_point(centers, points.dims, labels, points.n);
  return best;
}

}  // namespace pymtg
