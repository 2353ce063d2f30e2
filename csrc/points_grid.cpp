#include "points_grid.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "points_grid_kernels.hpp"

namespace pymtg {
namespace {

using Index = std::int64_t;

constexpr Index kChunks =
    64;  // stretches of cells whose sums are added in order, whatever the number of threads
constexpr Index kSortBlocks = 16;

// Centres as x and y apart.
struct Split {
  std::vector<double> x, y;
  explicit Split(const std::vector<double>& centers) : x(centers.size() / 2), y(centers.size() / 2) {
    for (std::size_t k = 0; k < x.size(); ++k) {
      x[k] = centers[2 * k];
      y[k] = centers[2 * k + 1];
    }
  }
  PlaneCenters view() const { return {x.data(), y.data(), static_cast<Index>(x.size())}; }
};

double coordinate(const Points& points, Index i, int axis) {
  const Index at = 2 * i + axis;
  const double x = points.is_double ? static_cast<const double*>(points.data)[at]
                                    : static_cast<double>(static_cast<const float*>(points.data)[at]);
  return x - points.offset[axis];
}

double square(double v) { return v * v; }

constexpr Index kBatch = 1024;

// Points of one cell on their way through the kernel.
struct Batch {
  double x[kBatch], y[kBatch], squared[kBatch];
  std::int32_t label[kBatch];

  Index read(const double* xy, Index count) {
    for (Index i = 0; i < count; ++i) {
      x[i] = xy[2 * i];
      y[i] = xy[2 * i + 1];
    }
    return count;
  }
};

}  // namespace

PointGrid::PointGrid(const Points& points, int threads) : n_(points.n) {
  double low_x = std::numeric_limits<double>::infinity(), high_x = -low_x, low_y = low_x, high_y = -low_x;
#pragma omp parallel for num_threads(threads) reduction(min : low_x, low_y) reduction(max : high_x, high_y)
  for (Index i = 0; i < n_; ++i) {
    const double px = coordinate(points, i, 0), py = coordinate(points, i, 1);
    low_x = std::min(low_x, px);
    low_y = std::min(low_y, py);
    high_x = std::max(high_x, px);
    high_y = std::max(high_y, py);
  }
  side_ = std::clamp<Index>(static_cast<Index>(std::sqrt(static_cast<double>(n_) / 64)), 1, 512);
  const double low[2] = {low_x, low_y}, high[2] = {high_x, high_y};
  for (int axis = 0; axis < 2; ++axis) {
    low_[axis] = low[axis];
    step_[axis] = (high[axis] - low[axis]) / static_cast<double>(side_);
    half_[axis] = step_[axis] / 2 * (1 + 1e-9);  // a point may round into the next cell
  }
  sort_points(points, threads);
  sum_cells(threads);
}

// A counting sort by cell, stable and parallel: blocks of points count their cells, then write to their own
// places.
void PointGrid::sort_points(const Points& points, int threads) {
  const double per_step[2] = {step_[0] > 0 ? 1 / step_[0] : 0.0, step_[1] > 0 ? 1 / step_[1] : 0.0};
  const Index all_cells = side_ * side_, block = (n_ + kSortBlocks - 1) / kSortBlocks;
  cell_of_.resize(n_);
  std::vector<Index> place(kSortBlocks * all_cells);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (Index b = 0; b < kSortBlocks; ++b) {
    for (Index i = b * block; i < std::min(n_, (b + 1) * block); ++i) {
      Index at[2];
      for (int axis = 0; axis < 2; ++axis) {
        const double steps = (coordinate(points, i, axis) - low_[axis]) * per_step[axis];
        at[axis] = std::clamp<Index>(static_cast<Index>(steps), 0, side_ - 1);
      }
      cell_of_[i] = static_cast<std::int32_t>(at[1] * side_ + at[0]);
      ++place[b * all_cells + cell_of_[i]];
    }
  }
  Index next = 0;
  for (Index c = 0; c < all_cells; ++c) {
    const Index begin = next;
    for (Index b = 0; b < kSortBlocks; ++b) {
      const Index number = place[b * all_cells + c];
      place[b * all_cells + c] = next;
      next += number;
    }
    if (next == begin) continue;
    start_.push_back(begin);
    position_.push_back(static_cast<std::int32_t>(c));
    middle_x_.push_back(low_[0] + (static_cast<double>(c % side_) + 0.5) * step_[0]);
    middle_y_.push_back(low_[1] + (static_cast<double>(c / side_) + 0.5) * step_[1]);
  }
  start_.push_back(n_);
  xy_.resize(2 * n_);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (Index b = 0; b < kSortBlocks; ++b) {
    for (Index i = b * block; i < std::min(n_, (b + 1) * block); ++i) {
      const Index to = place[b * all_cells + cell_of_[i]]++;
      xy_[2 * to] = coordinate(points, i, 0);
      xy_[2 * to + 1] = coordinate(points, i, 1);
    }
  }
}

void PointGrid::sum_cells(int threads) {
  const Index number = static_cast<Index>(start_.size()) - 1;
  for (auto* sums : {&count_, &sum_x_, &sum_y_, &square_, &mean_x_, &mean_y_}) sums->assign(number, 0.0);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 256)
  for (Index c = 0; c < number; ++c) {
    double sx = 0, sy = 0, squares = 0;
    for (Index p = start_[c]; p < start_[c + 1]; ++p) {
      const double x = xy_[2 * p], y = xy_[2 * p + 1];
      sx += x;
      sy += y;
      squares += x * x + y * y;
    }
    count_[c] = static_cast<double>(start_[c + 1] - start_[c]);
    sum_x_[c] = sx;
    sum_y_[c] = sy;
    square_[c] = squares;
    mean_x_[c] = sx / count_[c];
    mean_y_[c] = sy / count_[c];
  }
}

std::vector<double> PointGrid::seed(Index wanted, Random& random) const {
  const auto potential_of = PYMTG_PICK_ISA(current_isa(), plane_potential);
  const Index trials = 2 + static_cast<Index>(std::log(static_cast<double>(wanted)));
  // The first seed is drawn by the cells' weights: as if every cell lay at distance 1.
  std::vector<double> closest(cells(), 1.0), centers;
  double total = static_cast<double>(n_);
  for (Index k = 0; k < wanted && total > 0; ++k) {
    Index chosen = 0;
    double lowest = std::numeric_limits<double>::infinity();
    for (Index trial = 0; trial < (k == 0 ? 1 : trials); ++trial) {
      double left = random.uniform() * total;
      Index c = 0, last = 0;
      for (; c < cells(); ++c) {
        if (closest[c] <= 0) continue;
        last = c;
        left -= count_[c] * closest[c];
        if (left < 0) break;
      }
      if (k == 0) std::fill(closest.begin(), closest.end(), std::numeric_limits<double>::infinity());
      const double potential = potential_of(mean_x_.data(), mean_y_.data(), count_.data(), closest.data(),
                                            cells(), mean_x_[last], mean_y_[last]);
      if (potential < lowest) {
        lowest = potential;
        chosen = last;
      }
    }
    centers.push_back(mean_x_[chosen]);
    centers.push_back(mean_y_[chosen]);
    for (Index c = 0; c < cells(); ++c)
      closest[c] =
          std::min(closest[c], square(mean_x_[c] - mean_x_[chosen]) + square(mean_y_[c] - mean_y_[chosen]));
    total = lowest;
  }
  settle(centers);
  return centers;
}

// Lloyd's steps on the cells' means: the points themselves are then a few steps from rest.
void PointGrid::settle(std::vector<double>& centers) const {
  const auto nearest = PYMTG_PICK_ISA(current_isa(), nearest_in_plane);
  std::vector<std::int32_t> label(cells(), -1), before;
  std::vector<double> squared(cells());
  for (int step = 0; step < 300; ++step) {
    before = label;
    nearest(mean_x_.data(), mean_y_.data(), cells(), Split(centers).view(), label.data(), squared.data());
    if (label == before) return;
    std::vector<double> totals(centers.size() / 2 * 3);
    for (Index c = 0; c < cells(); ++c) {
      totals[3 * label[c]] += count_[c];
      totals[3 * label[c] + 1] += sum_x_[c];
      totals[3 * label[c] + 2] += sum_y_[c];
    }
    for (std::size_t k = 0; k < centers.size() / 2; ++k) {
      if (!(totals[3 * k] > 0)) continue;
      centers[2 * k] = totals[3 * k + 1] / totals[3 * k];
      centers[2 * k + 1] = totals[3 * k + 2] / totals[3 * k];
    }
  }
}

Index PointGrid::chunks() const { return std::min(kChunks, cells()); }
Index PointGrid::chunk_begin(Index chunk) const { return cells() * chunk / chunks(); }

std::vector<std::int32_t> PointGrid::owners(const PlaneCenters& centers, Index first, Index count) const {
  std::vector<std::int32_t> owner(count);
  PYMTG_PICK_ISA(current_isa(), own_cells)
  (&middle_x_[first], &middle_y_[first], count, half_[0], half_[1], centers, owner.data());
  return owner;
}

PointGrid::Totals PointGrid::assign(const std::vector<double>& centers, int threads) const {
  const Isa isa = current_isa();
  const auto nearest = PYMTG_PICK_ISA(isa, nearest_in_plane);
  const Split split(centers);
  const Index number = static_cast<Index>(split.x.size());
  std::vector<double> parts(chunks() * number * 4);
  const int workers =
      cells() * number < 100'000 && n_ < 1'000'000 ? 1 : threads;  // less is done sooner alone
#pragma omp parallel num_threads(workers)
  {
    Batch batch;
#pragma omp for schedule(dynamic)
    for (Index chunk = 0; chunk < chunks(); ++chunk) {
      double* part = &parts[chunk * number * 4];
      const Index first = chunk_begin(chunk), count = chunk_begin(chunk + 1) - first;
      const std::vector<std::int32_t> owner = owners(split.view(), first, count);
      for (Index c = first; c < first + count; ++c) {
        const Index k = owner[c - first];
        if (k >= 0) {
          const double cx = split.x[k], cy = split.y[k];
          part[4 * k] += count_[c];
          part[4 * k + 1] += sum_x_[c];
          part[4 * k + 2] += sum_y_[c];
          part[4 * k + 3] +=
              square_[c] - 2 * (cx * sum_x_[c] + cy * sum_y_[c]) + count_[c] * (cx * cx + cy * cy);
          continue;
        }
        for (Index p = start_[c]; p < start_[c + 1]; p += kBatch) {
          const Index width = batch.read(&xy_[2 * p], std::min(kBatch, start_[c + 1] - p));
          nearest(batch.x, batch.y, width, split.view(), batch.label, batch.squared);
          for (Index i = 0; i < width; ++i) {
            double* at = part + 4 * batch.label[i];
            at[0] += 1;
            at[1] += batch.x[i];
            at[2] += batch.y[i];
            at[3] += batch.squared[i];
          }
        }
      }
    }
  }
  Totals totals(number * 4);
  for (Index chunk = 0; chunk < chunks(); ++chunk)
    for (Index at = 0; at < number * 4; ++at) totals[at] += parts[chunk * number * 4 + at];
  return totals;
}

// Puts the centres without points on the points farthest from all centres.
void PointGrid::fill_empty(const Totals& totals, std::vector<double>& centers) const {
  const auto nearest = PYMTG_PICK_ISA(current_isa(), nearest_in_plane);
  Batch batch;
  for (std::size_t k = 0; k < centers.size() / 2; ++k) {
    if (totals[4 * k] > 0) continue;
    const Split split(centers);
    double most = -1;
    for (Index p = 0; p < n_; p += kBatch) {
      const Index width = batch.read(&xy_[2 * p], std::min(kBatch, n_ - p));
      nearest(batch.x, batch.y, width, split.view(), batch.label, batch.squared);
      const Index at = std::max_element(batch.squared, batch.squared + width) - batch.squared;
      if (batch.squared[at] <= most) continue;
      most = batch.squared[at];
      centers[2 * k] = batch.x[at];
      centers[2 * k + 1] = batch.y[at];
    }
  }
}

double PointGrid::sum_of_squares() const {
  double total = 0;
  for (double part : square_) total += part;
  return total;
}

LloydSummary PointGrid::lloyd(const LloydOptions& options, std::vector<double>& centers, int threads) const {
  // A cell counts now with its sums, now point by point: shifts within rounding are no shifts.
  const double tol = std::max(options.tol, 1e-24 * sum_of_squares() / static_cast<double>(n_));
  LloydSummary summary{0, 0, false};
  while (true) {
    const Totals totals = assign(centers, threads);
    bool empty = false;
    summary.inertia = 0;
    for (std::size_t k = 0; k < centers.size() / 2; ++k) {
      empty = empty || !(totals[4 * k] > 0);
      summary.inertia += totals[4 * k + 3];
    }
    if (empty) {
      fill_empty(totals, centers);
      summary.converged = false;
      if (++summary.iterations > options.max_iter + static_cast<Index>(centers.size())) return summary;
      continue;
    }
    if (summary.converged || summary.iterations >= options.max_iter) return summary;
    double shift = 0;
    for (std::size_t k = 0; k < centers.size() / 2; ++k) {
      for (int axis = 0; axis < 2; ++axis) {
        const double mean = totals[4 * k + 1 + axis] / totals[4 * k];
        shift += square(mean - centers[2 * k + axis]);
        centers[2 * k + axis] = mean;
      }
    }
    ++summary.iterations;
    summary.converged = shift <= tol;
  }
}

void PointGrid::labels(const Points& points, const std::vector<double>& centers, std::int32_t* out,
                       int threads) const {
  const auto nearest = PYMTG_PICK_ISA(current_isa(), nearest_in_plane);
  const Split split(centers);
  std::vector<std::int32_t> owner_at(side_ * side_);
  const std::vector<std::int32_t> owner = owners(split.view(), 0, cells());
  for (Index c = 0; c < cells(); ++c) owner_at[position_[c]] = owner[c];
#pragma omp parallel num_threads(threads)
  {
    Batch batch;
    std::int32_t border[kBatch];  // positions of the points whose cell has no owner
#pragma omp for schedule(static)
    for (Index first = 0; first < n_; first += kBatch) {
      Index number = 0;
      for (Index i = first; i < std::min(n_, first + kBatch); ++i) {
        out[i] = owner_at[cell_of_[i]];
        if (out[i] >= 0) continue;
        batch.x[number] = coordinate(points, i, 0);
        batch.y[number] = coordinate(points, i, 1);
        border[number++] = static_cast<std::int32_t>(i);
      }
      nearest(batch.x, batch.y, number, split.view(), batch.label, batch.squared);
      for (Index i = 0; i < number; ++i) out[border[i]] = batch.label[i];
    }
  }
}

}  // namespace pymtg
