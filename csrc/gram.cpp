#include "gram.hpp"

#include <algorithm>
#include <memory>

namespace pymtg {
namespace {

using Index = std::int64_t;

constexpr Index kPackChunk = 64;         // features that one thread packs at a time
constexpr Index kSlabBytes = 4'000'000;  // packed slab: near the second-level caches' size
constexpr Index kFewPoints = 300;
constexpr Index kParts = 16;
constexpr Index kMirrored = 32;  // rows and columns mirrored at a time: both stay in the first-level cache

Index round_up(Index value, Index multiple) { return (value + multiple - 1) / multiple * multiple; }

// Adds columns [j0, j0 + 24) of the upper triangle for one packed slab.
template <typename TileKernel>
void add_columns(TileKernel tile_kernel, const double* packed, Index panel_stride, Index depth, Index j0,
                 Index n, double* gram) {
  double tile[kPanel * kTileColumns];
  const Index j1 = std::min(j0 + kTileColumns, n);
  const double* columns = packed + (j0 / kPanel) * panel_stride;
  for (Index k = 0; k < depth; k += kDepth) {
    for (Index i0 = 0; i0 < j1; i0 += kPanel) {
      const double* rows = packed + (i0 / kPanel) * panel_stride;
      tile_kernel(rows + k * kPanel, columns + k * kPanel, panel_stride, std::min(kDepth, depth - k), tile);
      for (Index i = i0; i < std::min(i0 + kPanel, n); ++i)
        for (Index j = j0; j < j1; ++j) gram[i * n + j] += tile[(i - i0) * kTileColumns + (j - j0)];
    }
  }
}

// Adds features [begin, end) to the upper triangle.
void add_features(const Slab& slab, Index begin, Index end, double* gram, int threads) {
  const Index n = slab.points;
  const Isa isa = current_isa();
  const auto pack = PYMTG_PICK_ISA(isa, gram_pack);
  const auto tile_kernel = PYMTG_PICK_ISA(isa, gram_tile);

  const Index panels = round_up(n, kTileColumns) / kPanel;
  const Index wanted = round_up(kSlabBytes / (panels * kPanel * Index(sizeof(double))), kDepth);
  const Index slab_features = std::min(std::max(wanted, 2 * kDepth), round_up(end - begin, kDepth));
  const Index panel_stride = slab_features * kPanel;
  const std::unique_ptr<double[]> packed(
      new double[panels * panel_stride]());  // zero: the lanes beyond point n
  const Index column_tiles = panels / 3;

#pragma omp parallel num_threads(threads)
  for (Index start = begin; start < end; start += slab_features) {
    const Index depth = std::min(slab_features, end - start);
#pragma omp for schedule(dynamic)
    for (Index f = 0; f < depth; f += kPackChunk)
      pack(slab, start + f, std::min(kPackChunk, depth - f), start, panel_stride, packed.get());
#pragma omp for schedule(dynamic)
    for (Index t = 0; t < column_tiles; ++t)  // the longest columns first
      add_columns(tile_kernel, packed.get(), panel_stride, depth, (column_tiles - 1 - t) * kTileColumns, n,
                  gram);
  }
}

}  // namespace

void gram_add(const Slab& slab, Index features, double* gram, int threads) {
  const Index n = slab.points;
  if (n == 0 || features == 0) return;
  if (n <= kFewPoints && features >= kParts * kDepth) {
    // Threads that meet after every slab would wait for each other longer than they work: a fixed number of
    // stretches of features instead, each with a matrix of its own, added up in order.
    const std::unique_ptr<double[]> parts(new double[kParts * n * n]());
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (Index p = 0; p < kParts; ++p)
      add_features(slab, features * p / kParts, features * (p + 1) / kParts, parts.get() + p * n * n, 1);
    for (Index p = 0; p < kParts; ++p)
      for (Index at = 0; at < n * n; ++at) gram[at] += parts[p * n * n + at];
  } else {
    add_features(slab, 0, features, gram, threads);
  }
  for (Index i0 = 0; i0 < n; i0 += kMirrored)
    for (Index j0 = i0; j0 < n; j0 += kMirrored)
      for (Index j = j0; j < std::min(j0 + kMirrored, n); ++j)
        for (Index i = i0; i < std::min(i0 + kMirrored, j); ++i) gram[j * n + i] = gram[i * n + j];
}

}  // namespace pymtg
