// How a batch's logits are cut into tiles: decided on the host, known to the kernels.
#pragma once

#include <cstdint>
#include <vector>

#include "device.cuh"

namespace pymtg {
namespace cuda {

constexpr int kMostInTile = 256;    // classes of a task that stands in a tile; above, a block streams it
constexpr int kTileFloats = 10240;  // of shared memory that a tile takes at most
constexpr int kExchangeFloats = 2 * kWarps;  // of them, what warps tell each other where a task is streamed

// The pitch of a tile's rows: a warp that looks at one column of `rows` rows, and at the next tasks' beside
// it, then meets every bank of shared memory once, or as good as.
PYMTG_HOST_DEVICE int padded(int columns, int rows) {
  if (rows == 1) return columns;
  const int step = kWarp / rows;
  return columns + ((step - columns) % kWarp + kWarp) % kWarp;
}

// Logits, labels and gold of the rows; a scale a task; a flag a row.
PYMTG_HOST_DEVICE int64_t tile_floats(int rows, int columns, int tasks) {
  return static_cast<int64_t>(rows) * (padded(columns, rows) + 2 * padded(tasks, rows) + 1) + tasks;
}

struct Tiling {
  std::vector<int> starts;  // first task of each tile, and the number of tasks
  int rows = 1;             // of a tile, a power of two
  bool whole = false;       // one tile holds all tasks
  int floats = 0;           // of shared memory
};

// offsets: [T + 1] first columns.
Tiling tiling_for(const std::vector<int64_t>& offsets, int64_t rows);

}  // namespace cuda
}  // namespace pymtg
