#include "tiling.cuh"

#include <algorithm>
#include <numeric>

namespace pymtg {
namespace cuda {
namespace {

// Blocks that fill a large device twice. A constant, so that sums are the same on every device.
constexpr int64_t kEnoughBlocks = 264;
constexpr int kMostRows = 32;
// A row that fits a tile of so many is recorded where it is computed, without a detour through memory.
constexpr int kFewestWholeRows = 4;
// A batch of so few takes less time than a launch, which tiles of whole rows save.
constexpr int64_t kFewLogits = 1 << 20;
// (Row, task) pairs of a block: fewer leave most of its threads idle, and many sums.
constexpr int kFewestCells = 128;
// A block streams one row after the other.
constexpr int kStreamedRows = 4;
// Tiles that start at a multiple of so many tasks start at an aligned address, where the classes are equally
// many.
constexpr int kTasksAligned = 16;

int columns_of(const std::vector<int64_t>& offsets, int first, int end) {
  return static_cast<int>(offsets[static_cast<std::size_t>(end)] - offsets[static_cast<std::size_t>(first)]);
}

bool streamed(const std::vector<int64_t>& offsets, int task) {
  return offsets[static_cast<std::size_t>(task) + 1] - offsets[static_cast<std::size_t>(task)] > kMostInTile;
}

bool fits(const std::vector<int64_t>& offsets, int first, int end, int rows, int64_t floats) {
  if (offsets[static_cast<std::size_t>(end)] - offsets[static_cast<std::size_t>(first)] > floats)
    return false;
  return tile_floats(rows, columns_of(offsets, first, end), end - first) <= floats;
}

// Whether rows of a tile lie so that more than two lanes of a warp meet in a bank: neighbouring tasks as far
// apart as the pitch leaves no room for.
bool crowded(const std::vector<int64_t>& offsets, int rows) {
  for (std::size_t task = 0; task + 1 < offsets.size(); ++task)
    if (std::gcd(offsets[task + 1] - offsets[task], static_cast<int64_t>(kWarp / rows)) > 2) return true;
  return false;
}

Tiling cut(const std::vector<int64_t>& offsets, int rows, int64_t floats) {
  const int num_tasks = static_cast<int>(offsets.size()) - 1;
  Tiling tiling;
  tiling.rows = rows;
  for (int first = 0; first < num_tasks;) {
    tiling.starts.push_back(first);
    int end = first + 1;
    if (streamed(offsets, first)) {
      tiling.floats = kTileFloats;
    } else {
      while (end < num_tasks && !streamed(offsets, end) && fits(offsets, first, end + 1, rows, floats)) ++end;
      const int aligned = end / kTasksAligned * kTasksAligned;
      if (end < num_tasks && aligned > first) end = aligned;
      tiling.floats = std::max(
          tiling.floats, static_cast<int>(tile_floats(rows, columns_of(offsets, first, end), end - first)));
    }
    first = end;
  }
  tiling.starts.push_back(num_tasks);
  tiling.whole = tiling.starts.size() == 2 && !streamed(offsets, 0);
  return tiling;
}

int64_t blocks_of(const Tiling& tiling, int64_t batch_rows) {
  return (static_cast<int64_t>(tiling.starts.size()) - 1) * ((batch_rows + tiling.rows - 1) / tiling.rows);
}

}  // namespace

Tiling tiling_for(const std::vector<int64_t>& offsets, int64_t batch_rows) {
  const int num_tasks = static_cast<int>(offsets.size()) - 1;
  int most = 1;
  while (most < batch_rows && most < kMostRows) most *= 2;

  bool streams = false;
  for (int task = 0; task < num_tasks; ++task) streams |= streamed(offsets, task);
  int whole = streams ? 0 : most;
  while (whole > 0 && !fits(offsets, 0, num_tasks, whole, kTileFloats)) whole /= 2;
  const bool small = offsets.back() * batch_rows <= kFewLogits;
  if (whole >= std::min(most, kFewestWholeRows) && (whole == most || small || !crowded(offsets, whole))) {
    while (whole > 1 && whole / 2 * num_tasks >= kFewestCells &&
           (batch_rows + whole - 1) / whole < kEnoughBlocks / 2)
      whole /= 2;
    return cut(offsets, whole, kTileFloats);
  }

  // Smaller tiles, then fewer rows, until there are enough blocks.
  Tiling tiling;
  for (int rows = streams ? std::min(most, kStreamedRows) : most; rows >= 1; rows /= 2) {
    for (int64_t floats = kTileFloats; floats >= kTileFloats / 4; floats /= 2) {
      tiling = cut(offsets, rows, floats);
      if (blocks_of(tiling, batch_rows) >= kEnoughBlocks) return tiling;
    }
  }
  return tiling;
}

}  // namespace cuda
}  // namespace pymtg
