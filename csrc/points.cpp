#include "points.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "fuzzy.hpp"

namespace pymtg {
namespace {

using Index = std::int64_t;

// Points are dealt with in blocks whose number depends on the shape alone; what the blocks sum up is added in
// their order. So results do not depend on the number of threads.
struct Blocks {
  Index n, size, number;
  Blocks(Index points, Index doubles_per_block) : n(points) {
    const Index most = std::clamp<Index>(8'000'000 / std::max<Index>(doubles_per_block, 1), 4, 256);
    size = std::max<Index>((points + most - 1) / most, 1024);
    number = (points + size - 1) / size;
  }
  Index first(Index b) const { return b * size; }
  Index count(Index b) const { return std::min(size, n - b * size); }
};

void add_blocks(const std::vector<double>& parts, Index width, double* total) {
  std::fill(total, total + width, 0.0);
  for (std::size_t at = 0; at < parts.size(); ++at) total[at % width] += parts[at];
}

double coordinate(const Points& points, Index i, Index d) {
  const Index at = i * points.dims + d;
  const double x = points.is_double ? static_cast<const double*>(points.data)[at]
                                    : static_cast<double>(static_cast<const float*>(points.data)[at]);
  return x - points.offset[d];
}

// A point drawn in proportion to its weight; `parts` are the blocks' sums of the weights.
Index draw(const std::vector<double>& weight, const std::vector<double>& parts, const Blocks& blocks,
           Random& random) {
  double total = 0;
  for (double part : parts) total += part;
  double left = random.uniform() * total;
  Index b = 0, last_block = 0;
  for (; b < blocks.number; ++b) {
    if (parts[b] > 0) last_block = b;
    if (left < parts[b]) break;
    left -= parts[b];
  }
  b = std::min(b, blocks.number - 1);
  if (!(parts[b] > 0)) b = last_block;
  Index last = blocks.first(b);
  for (Index i = blocks.first(b); i < blocks.first(b) + blocks.count(b); ++i) {
    if (weight[i] <= 0) continue;
    last = i;
    left -= weight[i];
    if (left < 0) break;
  }
  return last;
}

// The assignment step of one iteration and what it summed up.
class Step {
 public:
  Step(const Points& points, Index number)
      : nearest(points.n),
        sums(number * points.dims),
        count(number),
        points_(points),
        number_(number),
        blocks_(points.n, number * points.dims),
        part_sums_(blocks_.number * number * points.dims),
        part_count_(blocks_.number * number) {}

  // Returns the number of labels that changed.
  Index assign(const double* centers, std::int32_t* labels, int threads) {
    const auto kernel = PYMTG_PICK_ISA(current_isa(), assign_points);
    const Index width = number_ * points_.dims;
    std::fill(part_sums_.begin(), part_sums_.end(), 0.0);
    std::fill(part_count_.begin(), part_count_.end(), 0.0);
    std::vector<double> scratch(static_cast<std::size_t>(blocks_.number) * 16 * number_);
    Index changed = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(+ : changed)
    for (Index b = 0; b < blocks_.number; ++b) {
      const Index first = blocks_.first(b);
      changed += kernel(points_, first, blocks_.count(b), centers, number_, &scratch[b * 16 * number_],
                        labels + first, &nearest[first], &part_sums_[b * width], &part_count_[b * number_]);
    }
    add_blocks(part_sums_, width, sums.data());
    add_blocks(part_count_, number_, count.data());
    return changed;
  }

  // Moves the farthest point that its cluster can spare to each empty cluster; whether there was one.
  bool fill_empty(std::int32_t* labels) {
    bool found = false;
    for (Index k = 0; k < number_; ++k) {
      if (count[k] > 0) continue;
      found = true;
      Index farthest = -1;
      for (Index i = 0; i < points_.n; ++i)
        if (count[labels[i]] > 1 && (farthest < 0 || nearest[i] > nearest[farthest])) farthest = i;
      for (Index d = 0; d < points_.dims; ++d) {
        const double x = coordinate(points_, farthest, d);
        sums[labels[farthest] * points_.dims + d] -= x;
        sums[k * points_.dims + d] = x;
      }
      count[labels[farthest]] -= 1;
      count[k] = 1;
      labels[farthest] = static_cast<std::int32_t>(k);
      nearest[farthest] = 0;
    }
    return found;
  }

  double inertia() const {
    std::vector<double> parts(blocks_.number);
    for (Index i = 0; i < points_.n; ++i) parts[i / blocks_.size] += nearest[i];
    double total = 0;
    for (double part : parts) total += part;
    return total;
  }

  std::vector<double> nearest, sums, count;

 private:
  const Points& points_;
  Index number_;
  Blocks blocks_;
  std::vector<double> part_sums_, part_count_;
};

// centers := sums / count; returns the sum of the squared shifts.
double move_centers(const Step& step, Index dims, std::vector<double>& centers) {
  double shift = 0;
  for (std::size_t at = 0; at < centers.size(); ++at) {
    const double mean = step.sums[at] / step.count[at / dims];
    shift += (mean - centers[at]) * (mean - centers[at]);
    centers[at] = mean;
  }
  return shift;
}

}  // namespace

void coordinate_means(const Points& points, double* means, int threads) {
  const std::vector<double> zero(points.dims);
  Points plain = points;
  plain.offset = zero.data();
  const Blocks blocks(points.n, points.dims);
  std::vector<double> parts(blocks.number * points.dims);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (Index b = 0; b < blocks.number; ++b)
    for (Index i = blocks.first(b); i < blocks.first(b) + blocks.count(b); ++i)
      for (Index d = 0; d < points.dims; ++d) parts[b * points.dims + d] += coordinate(plain, i, d);
  add_blocks(parts, points.dims, means);
  for (Index d = 0; d < points.dims; ++d) means[d] /= static_cast<double>(points.n);
}

std::vector<double> seed_points(const Points& points, Index wanted, Random& random, int threads) {
  const auto kernel = PYMTG_PICK_ISA(current_isa(), point_distances);
  const Index trials = 2 + static_cast<Index>(std::log(static_cast<double>(wanted)));
  const Blocks blocks(points.n, trials);
  std::vector<double> closest(points.n, std::numeric_limits<double>::infinity());
  std::vector<double> to_trial(points.n * trials), scratch(blocks.number * 16 * trials);
  std::vector<double> parts(blocks.number * trials), potential(trials), current(blocks.number);
  std::vector<double> candidates(trials * points.dims), centers;
  for (Index k = 0; k < wanted; ++k) {
    const Index draws = k == 0 ? 1 : trials;
    for (Index t = 0; t < draws; ++t) {
      const Index i = k == 0 ? random.below(points.n) : draw(closest, current, blocks, random);
      for (Index d = 0; d < points.dims; ++d) candidates[t * points.dims + d] = coordinate(points, i, d);
    }
    std::fill(parts.begin(), parts.end(), 0.0);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (Index b = 0; b < blocks.number; ++b) {
      double* out = &to_trial[blocks.first(b) * draws];
      kernel(points, blocks.first(b), blocks.count(b), candidates.data(), draws, &scratch[b * 16 * trials],
             out);
      for (Index i = 0; i < blocks.count(b); ++i)
        for (Index t = 0; t < draws; ++t)
          parts[b * draws + t] += std::min(closest[blocks.first(b) + i], out[i * draws + t]);
    }
    add_blocks(std::vector<double>(parts.begin(), parts.begin() + blocks.number * draws), draws,
               potential.data());
    const Index chosen = std::min_element(potential.begin(), potential.begin() + draws) - potential.begin();
    centers.insert(centers.end(), candidates.begin() + chosen * points.dims,
                   candidates.begin() + (chosen + 1) * points.dims);
    for (Index b = 0; b < blocks.number; ++b) current[b] = parts[b * draws + chosen];
    for (Index i = 0; i < points.n; ++i) closest[i] = std::min(closest[i], to_trial[i * draws + chosen]);
    if (!(potential[chosen] > 0)) break;
  }
  return centers;
}

LloydSummary lloyd(const Points& points, const LloydOptions& options, std::vector<double>& centers,
                   std::int32_t* labels, int threads) {
  const Index number = static_cast<Index>(centers.size()) / points.dims;
  Step step(points, number);
  std::fill(labels, labels + points.n, -1);
  LloydSummary summary{0, 0, false};
  while (true) {
    const Index changed = step.assign(centers.data(), labels, threads);
    const bool refilled = step.fill_empty(labels);
    // The labels are those of the present centres: done when the centres no longer move, or the labels do
    // not.
    if (!refilled && (summary.converged || changed == 0 || summary.iterations >= options.max_iter)) {
      summary.converged = summary.converged || changed == 0;
      break;
    }
    const double shift = move_centers(step, points.dims, centers);
    ++summary.iterations;
    summary.converged = shift <= options.tol;
    if (refilled && summary.iterations > options.max_iter + number)
      break;  // duplicates that keep trading places
  }
  summary.inertia = step.inertia();
  return summary;
}

void distances_to_centers(const Points& points, const double* centers, Index number, double* out,
                          int threads) {
  const auto kernel = PYMTG_PICK_ISA(current_isa(), point_distances);
  const Blocks blocks(points.n, 16 * number);
  const Index size = std::min<Index>(blocks.size, 64);
  const Index chunks = (points.n + size - 1) / size;
#pragma omp parallel num_threads(threads)
  {
    std::vector<double> scratch(16 * number);
#pragma omp for schedule(dynamic, 4)
    for (Index c = 0; c < chunks; ++c)
      kernel(points, c * size, std::min(size, points.n - c * size), centers, number, scratch.data(),
             out + c * size * number);
  }
}

FuzzyPointsSummary fuzzy_points(const Points& points, double fuzzifier, double tol, Index max_iter,
                                std::vector<double>& centers, double* memberships, int threads) {
  const Index dims = points.dims, number = static_cast<Index>(centers.size()) / dims,
              width = number * (dims + 2);
  const Blocks blocks(points.n, width);
  std::vector<double> squared(points.n * number), before(points.n * number), parts(blocks.number * width);
  std::vector<double> totals(width);  // per centre: sum u^m x, sum u^m, sum u^m d^2
  FuzzyPointsSummary summary{0, 0, false};
  while (true) {
    distances_to_centers(points, centers.data(), number, squared.data(), threads);
    fuzzify(squared.data(), points.n, number, fuzzifier, memberships, threads);
    double change = 0;
    std::fill(parts.begin(), parts.end(), 0.0);
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(max : change)
    for (Index b = 0; b < blocks.number; ++b) {
      for (Index i = blocks.first(b); i < blocks.first(b) + blocks.count(b); ++i) {
        for (Index k = 0; k < number; ++k) {
          const Index at = i * number + k;
          double* part = &parts[b * width + k * (dims + 2)];
          change = std::max(change, std::abs(memberships[at] - before[at]));
          const double weight = std::pow(memberships[at], fuzzifier);
          for (Index d = 0; d < dims; ++d) part[d] += weight * coordinate(points, i, d);
          part[dims] += weight;
          part[dims + 1] += weight * squared[at];
        }
      }
    }
    add_blocks(parts, width, totals.data());
    summary.objective = 0;
    for (Index k = 0; k < number; ++k) summary.objective += totals[k * (dims + 2) + dims + 1];
    summary.converged = change <= tol;
    if (summary.converged || summary.iterations >= max_iter) return summary;
    ++summary.iterations;
    std::copy(memberships, memberships + points.n * number, before.begin());
    for (Index k = 0; k < number; ++k)
      for (Index d = 0; d < dims; ++d)
        if (totals[k * (dims + 2) + dims] > 1e-200)
          centers[k * dims + d] = totals[k * (dims + 2) + d] / totals[k * (dims + 2) + dims];
  }
}

}  // namespace pymtg
