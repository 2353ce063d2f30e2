#include "kmeans.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "kmeans_kernels.hpp"
#include "random.hpp"

namespace pymtg {
namespace {

using Index = std::int64_t;

// One start's state: labels, and per cluster the sums over its points of the matrix's rows.
class Partition {
 public:
  Partition(const double* distances, Index n, Index clusters)
      : distances_(distances),
        n_(n),
        clusters_(clusters),
        labels(n),
        best_(n),
        closest_(n),
        sums_(clusters * n),
        scale_(clusters),
        shift_(clusters),
        within_(clusters),
        count_(clusters) {}

  void seed(Random& random);
  bool lloyd_step();
  bool single_moves();
  bool swap(Random& random, Index rank);
  double inertia() const;
  void recompute();
  double to_centroid(Index i, Index k) const {
    return std::max(0.0, sums_[k * n_ + i] * scale_[k] - shift_[k]);
  }
  const double* row(Index i) const { return distances_ + i * n_; }

 private:
  const double* distances_;
  Index n_, clusters_;

 public:
  std::vector<std::int32_t> labels;

 private:
  void refresh(Index k) {
    if (count_[k] == 0) return;
    const double size = static_cast<double>(count_[k]);
    scale_[k] = 1 / size;
    shift_[k] = within_[k] / (2 * size * size);
  }
  void fill_empty();
  void follow(const std::vector<std::int32_t>& before);
  void move(Index i, Index from, Index to);
  Index draw(Random& random, double total) const;
  std::pair<Index, double> draw_greedily(Random& random, double total) const;

  std::vector<double> best_, closest_, sums_, scale_, shift_, within_;
  std::vector<Index> count_;
  Index moves_ = 0;  // since the sums were last taken afresh
};

// A point drawn with probability in proportion to its squared distance to the nearest seed.
Index Partition::draw(Random& random, double total) const {
  double left = random.uniform() * total;
  Index last = 0;
  for (Index i = 0; i < n_; ++i) {
    if (closest_[i] <= 0) continue;
    last = i;
    left -= closest_[i];
    if (left < 0) break;
  }
  return last;
}

// Of 2 + log K draws the one that lowers the sum of squared distances to the nearest seed most, and that sum.
std::pair<Index, double> Partition::draw_greedily(Random& random, double total) const {
  const auto minima = PYMTG_PICK_ISA(current_isa(), sum_of_minima);
  const Index trials = 2 + static_cast<Index>(std::log(static_cast<double>(clusters_)));
  std::pair<Index, double> chosen{0, std::numeric_limits<double>::infinity()};
  for (Index trial = 0; trial < trials; ++trial) {
    const Index candidate = draw(random, total);
    const double potential = minima(closest_.data(), row(candidate), n_);
    if (potential < chosen.second) chosen = {candidate, potential};
  }
  return chosen;
}

// Greedy k-means++ (Arthur and Vassilvitskii 2007).
void Partition::seed(Random& random) {
  std::fill(labels.begin(), labels.end(), 0);
  const Index first = random.below(n_);
  std::copy(row(first), row(first) + n_, closest_.begin());
  double total = PYMTG_PICK_ISA(current_isa(), sum_of_minima)(closest_.data(), closest_.data(), n_);
  for (Index k = 1; k < clusters_; ++k) {
    const auto [chosen, potential] = draw_greedily(random, total);
    const double* to_chosen = row(chosen);
    for (Index i = 0; i < n_; ++i) {
      if (to_chosen[i] < closest_[i]) {
        closest_[i] = to_chosen[i];
        labels[i] = static_cast<std::int32_t>(k);
      }
    }
    total = potential;
  }
}

void Partition::recompute() {
  const auto add = PYMTG_PICK_ISA(current_isa(), add_row);
  std::fill(sums_.begin(), sums_.end(), 0.0);
  std::fill(within_.begin(), within_.end(), 0.0);
  std::fill(count_.begin(), count_.end(), 0);
  moves_ = 0;
  for (Index i = 0; i < n_; ++i) {
    add(&sums_[labels[i] * n_], row(i), 1.0, n_);
    ++count_[labels[i]];
  }
  for (Index i = 0; i < n_; ++i) within_[labels[i]] += sums_[labels[i] * n_ + i];
  for (Index k = 0; k < clusters_; ++k) refresh(k);
}

// Gives each empty cluster the point that lies farthest from the mean of a cluster that can spare it.
void Partition::fill_empty() {
  std::vector<Index> count(clusters_);
  for (Index i = 0; i < n_; ++i) ++count[labels[i]];
  for (Index k = 0; k < clusters_; ++k) {
    if (count[k] > 0) continue;
    Index farthest = -1;
    for (Index i = 0; i < n_; ++i)
      if (count[labels[i]] > 1 && (farthest < 0 || best_[i] > best_[farthest])) farthest = i;
    --count[labels[farthest]];
    labels[farthest] = static_cast<std::int32_t>(k);
    best_[farthest] = 0;
    count[k] = 1;
  }
}

// Brings the sums from the labels `before` to the present ones: point by point where few moved. Rounding that
// piles up in the sums is wiped out after as many moves as there are points.
void Partition::follow(const std::vector<std::int32_t>& before) {
  Index changed = 0;
  for (Index i = 0; i < n_; ++i) changed += labels[i] != before[i];
  if (8 * changed > n_ || moves_ + changed > n_) return recompute();
  for (Index i = 0; i < n_; ++i)
    if (labels[i] != before[i]) move(i, before[i], labels[i]);
}

// Assigns every point to the nearest mean of the present clusters; whether a label changed.
bool Partition::lloyd_step() {
  const std::vector<std::int32_t> before = labels;
  PYMTG_PICK_ISA(current_isa(), nearest_clusters)
  (sums_.data(), scale_.data(), shift_.data(), clusters_, n_, labels.data(), best_.data());
  fill_empty();
  follow(before);
  return labels != before;
}

void Partition::move(Index i, Index from, Index to) {
  const auto add = PYMTG_PICK_ISA(current_isa(), add_row);
  within_[from] -= 2 * sums_[from * n_ + i];
  within_[to] += 2 * sums_[to * n_ + i];
  add(&sums_[from * n_], row(i), -1.0, n_);
  add(&sums_[to * n_], row(i), 1.0, n_);
  ++moves_;
  --count_[from];
  ++count_[to];
  refresh(from);
  refresh(to);
  labels[i] = static_cast<std::int32_t>(to);
}

// One pass of moves of single points that lower the inertia, own mean and target mean both following the
// point; whether one was made.
bool Partition::single_moves() {
  if (moves_ > n_) recompute();
  const double worth = 1e-13 * inertia();
  bool moved = false;
  for (Index i = 0; i < n_; ++i) {
    const Index own = labels[i];
    if (count_[own] == 1) continue;
    const double size = static_cast<double>(count_[own]);
    const double gain = to_centroid(i, own) * size / (size - 1);
    double lowest = std::numeric_limits<double>::infinity();
    Index target = own;
    for (Index k = 0; k < clusters_; ++k) {
      if (k == own) continue;
      const double other = static_cast<double>(count_[k]);
      const double cost = to_centroid(i, k) * other / (other + 1);
      if (cost < lowest) {
        lowest = cost;
        target = k;
      }
    }
    if (gain - lowest > worth && lowest < gain * (1 - 1e-12)) {
      move(i, own, target);
      moved = true;
    }
  }
  return moved;
}

// Dissolves a cluster and starts one at a point far from its mean, drawn as k-means++ draws: the way out of
// a partition that splits one true cluster and joins two others. `rank` picks the cluster: 0 for the one
// whose points lose least, 1 for the next. Returns false if every point lies on its mean.
bool Partition::swap(Random& random, Index rank) {
  double total = 0;
  for (Index i = 0; i < n_; ++i) total += closest_[i] = to_centroid(i, labels[i]);
  if (!(total > 0)) return false;
  const double* to_point = row(draw_greedily(random, total).first);

  // The nearest place that remains for each point: another cluster's mean, or the new start.
  std::vector<std::pair<double, Index>> loss(clusters_);
  for (Index k = 0; k < clusters_; ++k) loss[k].second = k;
  std::vector<Index> refuge(n_);
  for (Index i = 0; i < n_; ++i) {
    double nearest = to_point[i];
    refuge[i] = -1;
    for (Index k = 0; k < clusters_; ++k) {
      if (k == labels[i] || to_centroid(i, k) >= nearest) continue;
      nearest = to_centroid(i, k);
      refuge[i] = k;
    }
    loss[labels[i]].first += nearest - closest_[i];
  }
  std::sort(loss.begin(), loss.end());
  const Index dissolved = loss[rank].second;
  const std::vector<std::int32_t> before = labels;
  for (Index i = 0; i < n_; ++i) {
    const bool homeless = labels[i] == dissolved;
    best_[i] = closest_[i];
    if (homeless ? refuge[i] < 0 : to_point[i] < closest_[i]) {
      labels[i] = static_cast<std::int32_t>(dissolved);
      best_[i] = to_point[i];
    } else if (homeless) {
      labels[i] = static_cast<std::int32_t>(refuge[i]);
      best_[i] = to_centroid(i, refuge[i]);
    }
  }
  fill_empty();
  follow(before);
  return true;
}

double Partition::inertia() const {
  double total = 0;
  for (Index k = 0; k < clusters_; ++k)
    if (count_[k] > 0) total += within_[k] / (2 * static_cast<double>(count_[k]));
  return total;
}

struct Start {
  std::vector<std::int32_t> labels;
  KMeansSummary summary;
};

// Lloyd's steps, then single-point moves, to rest or to the end of the steps allowed. The inertia is exact to
// rounding that recompute() wipes out.
KMeansSummary settle(Partition& state, const KMeansOptions& options) {
  Index steps = 0;
  bool settled = false;
  while (steps < options.max_iter && !settled) {
    settled = !state.lloyd_step();
    ++steps;
  }
  while (options.local_search && steps < options.max_iter) {
    settled = !state.single_moves();
    if (settled) break;
    ++steps;
  }
  return {state.inertia(), steps, settled};
}

void run_start(Partition& state, Random random, const KMeansOptions& options, Start& start) {
  state.seed(random);
  state.recompute();
  start.summary = settle(state, options);
  state.recompute();
  start.summary.inertia = state.inertia();
  start.labels = state.labels;
}

// Swaps clusters for as long as that lowers the inertia, until `patience` swaps in a row have not.
void improve(Partition& state, const KMeansOptions& options, Random random, Index patience, Start& start) {
  state.labels = start.labels;
  state.recompute();
  Partition kept = state;
  for (Index failures = 0; failures < patience; ++failures, state = kept) {
    if (!state.swap(random, failures % std::min<Index>(options.clusters, 10))) return;
    KMeansSummary summary = settle(state, options);
    if (!(summary.inertia < start.summary.inertia * (1 - 1e-10))) continue;
    state.recompute();
    summary.inertia = state.inertia();
    if (!(summary.inertia < start.summary.inertia)) continue;
    start = {state.labels, summary};
    kept = state;
    failures = -1;
  }
}

// Improves the best of the starts, as many as a fixed amount of work allows.
void improve_best(std::vector<Partition>& states, Index n, const KMeansOptions& options,
                  std::vector<Start>& starts) {
  const Index budget = std::max<Index>(100'000 / n, 10);
  const Index patience = std::min<Index>({4 * options.clusters, 100, budget});
  const Index number = std::min<Index>(budget / patience, options.starts);
  std::stable_sort(starts.begin(), starts.end(),
                   [](const Start& a, const Start& b) { return a.summary.inertia < b.summary.inertia; });
  const Index workers = static_cast<Index>(states.size());
#pragma omp parallel for num_threads(static_cast<int>(workers)) schedule(static, 1)
  for (Index worker = 0; worker < workers; ++worker) {
    for (Index s = worker; s < number; s += workers) {
      const Random random(options.seed, static_cast<std::uint64_t>(options.starts + s));
      if (starts[s].summary.converged) improve(states[worker], options, random, patience, starts[s]);
    }
  }
}

}  // namespace

void squared_distances(const double* gram, Index n, double* distances, int threads) {
  // Entries of the Gram matrix carry rounding errors in proportion to its diagonal.
  const double rounding = 16 * std::numeric_limits<double>::epsilon();
  constexpr Index kTile = 64;  // rows of which the transposed entries stay in the cache
  std::vector<double> diagonal(n);
  for (Index i = 0; i < n; ++i) diagonal[i] = gram[i * n + i];
#pragma omp parallel for num_threads(threads) schedule(static)
  for (Index i0 = 0; i0 < n; i0 += kTile) {
    for (Index j0 = 0; j0 < n; j0 += kTile) {
      for (Index i = i0; i < std::min(i0 + kTile, n); ++i) {
        for (Index j = j0; j < std::min(j0 + kTile, n); ++j) {
          const double scale = diagonal[i] + diagonal[j];
          const double value = scale - (gram[i * n + j] + gram[j * n + i]);
          distances[i * n + j] = i == j || value <= rounding * scale ? 0.0 : value;
        }
      }
    }
  }
}

Index distinct_points(const double* distances, Index n, std::int32_t* first) {
  Index distinct = 0;
  for (Index i = 0; i < n; ++i) {
    Index j = 0;
    while (j < i && distances[i * n + j] > 0) ++j;
    first[i] = static_cast<std::int32_t>(j);
    distinct += j == i;
  }
  return distinct;
}

KMeansSummary kmeans_distances(const double* distances, Index n, const KMeansOptions& options,
                               std::int32_t* labels, int threads) {
  // Every start has its own random stream and its own slot: which thread runs it changes nothing.
  std::vector<Start> starts(options.starts);
  const int workers = static_cast<int>(std::min<Index>(threads, options.starts));
  std::vector<Partition> states(workers, Partition(distances, n, options.clusters));
#pragma omp parallel for num_threads(workers) schedule(static, 1)
  for (int worker = 0; worker < workers; ++worker)
    for (Index s = worker; s < options.starts; s += workers) {
      const Random random(options.seed, static_cast<std::uint64_t>(s));
      run_start(states[worker], random, options, starts[s]);
    }

  if (options.local_search && options.clusters > 1) improve_best(states, n, options, starts);
  Index best = 0;
  for (Index s = 1; s < options.starts; ++s)
    if (starts[s].summary.inertia < starts[best].summary.inertia) best = s;
  std::vector<std::int32_t> number(options.clusters, -1);
  std::int32_t next = 0;
  for (Index i = 0; i < n; ++i) {
    std::int32_t& k = number[starts[best].labels[i]];
    if (k < 0) k = next++;
    labels[i] = k;
  }
  return starts[best].summary;
}

void centroid_distances(const double* distances, Index n, const std::int32_t* labels, Index clusters,
                        double* out) {
  Partition state(distances, n, clusters);
  state.labels.assign(labels, labels + n);
  state.recompute();
  for (Index i = 0; i < n; ++i)
    for (Index k = 0; k < clusters; ++k) out[i * clusters + k] = state.to_centroid(i, k);
}

void combine_points(const void* points, bool is_double, Index n, Index dims, const double* coefficients,
                    Index combinations, double* out, int threads) {
  const Isa isa = current_isa();
  const auto add = PYMTG_PICK_ISA(isa, add_row);
  const auto add_float = PYMTG_PICK_ISA(isa, add_float_row);
  constexpr Index kStretch = 1024;
  std::fill(out, out + combinations * dims, 0.0);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (Index d = 0; d < dims; d += kStretch) {
    const Index width = std::min(kStretch, dims - d);
    for (Index i = 0; i < n; ++i) {
      for (Index k = 0; k < combinations; ++k) {
        const double factor = coefficients[k * n + i];
        if (factor == 0) continue;
        if (is_double)
          add(out + k * dims + d, static_cast<const double*>(points) + i * dims + d, factor, width);
        else
          add_float(out + k * dims + d, static_cast<const float*>(points) + i * dims + d, factor, width);
      }
    }
  }
}

double silhouette(const double* distances, Index n, const std::int32_t* labels, Index clusters) {
  const auto add = PYMTG_PICK_ISA(current_isa(), add_row);
  std::vector<double> sums(clusters * n), count(clusters);
  for (Index i = 0; i < n; ++i) {
    add(&sums[labels[i] * n], distances + i * n, 1.0, n);
    ++count[labels[i]];
  }
  double total = 0;
  for (Index i = 0; i < n; ++i) {
    const Index own = labels[i];
    if (count[own] < 2) continue;
    const double inside = sums[own * n + i] / (count[own] - 1);
    double outside = std::numeric_limits<double>::infinity();
    for (Index k = 0; k < clusters; ++k)
      if (k != own) outside = std::min(outside, sums[k * n + i] / count[k]);
    const double larger = std::max(inside, outside);
    if (larger > 0) total += (outside - inside) / larger;
  }
  return total / static_cast<double>(n);
}

}  // namespace pymtg
