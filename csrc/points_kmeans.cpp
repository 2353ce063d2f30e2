// The restarts of k-means on points: direct or on a grid.
#include <algorithm>
#include <memory>

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

}  // namespace

LloydSummary kmeans_points(const Points& points, const KMeansPointsOptions& options,
                           std::vector<double>& centers, std::int32_t* labels, int threads) {
  const LloydOptions lloyd_options{options.max_iter, options.tol * mean_variance(points, threads)};
  std::unique_ptr<PointGrid> grid;
  if (options.grid) grid = std::make_unique<PointGrid>(points, threads);
  std::vector<std::int32_t> own(grid == nullptr && options.starts > 1 ? points.n : 0);
  LloydSummary best{0, 0, false};
  for (Index s = 0; s < options.starts; ++s) {
    Random random(options.seed, static_cast<std::uint64_t>(s));
    std::vector<double> candidate;
    if (grid) candidate = grid->seed(options.clusters, random);
    if (static_cast<Index>(candidate.size()) < 2 * options.clusters || !grid)
      candidate = seed_points(points, options.clusters, random, threads);
    std::int32_t* target = s == 0 || grid ? labels : own.data();
    const LloydSummary summary = grid ? grid->lloyd(lloyd_options, candidate, threads)
                                      : lloyd(points, lloyd_options, candidate, target, threads);
    if (s > 0 && !(summary.inertia < best.inertia)) continue;
    best = summary;
    centers = candidate;
    if (target != labels) std::copy(own.begin(), own.end(), labels);
  }
  if (grid) grid->labels(centers, labels, threads);
  number_by_first_point(centers, points.dims, labels, points.n);
  return best;
}

}  // namespace pymtg
