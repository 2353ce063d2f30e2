// A tile in shared memory: some rows of the columns of some tasks, computed in place.
#pragma once

#include "access.cuh"
#include "maths.cuh"
#include "tiling.cuh"

namespace pymtg {
namespace cuda {

constexpr int kMostByThread = 32;  // classes of a task that a thread computes alone; above, a warp does

// Where a tile's parts lie in shared memory.
struct Tile {
  int first_task, tasks;
  int64_t first_column;
  int columns;
  int rows, shift;  // of a full tile: 1 << shift
  int present;      // rows that the batch has here
  int column_pitch, task_pitch;
  float* x;      // [rows, column_pitch] logits, then the gradient
  int* cells;    // [rows, task_pitch] labels, then the bits of the weighted losses
  float* gold;   // [rows, task_pitch]
  float* scale;  // [tasks] what slopes are multiplied by
  int* refused;  // [rows] of Refusal
};

struct Cell {
  float loss, gold;
};

PYMTG_DEVICE float weight_of(const Layout& layout, int task, int64_t column, int classes, int label) {
  if (classes == 1) return layout.pos_weight != nullptr && label == 1 ? layout.pos_weight[task] : 1.0f;
  return layout.class_weight != nullptr ? layout.class_weight[column + label] : 1.0f;
}

// A thread computes a task of few classes. x: its logits, replaced by the gradient.
PYMTG_DEVICE Cell softmax_alone(float* x, int classes, int label, float weight, float scale) {
  Top top{x[0], 0};
  for (int c = 1; c < classes; ++c) top = higher(top, x[c], c);
  const float to_chosen = x[label] - top.value;  // NaN where the top is infinite, as in torch
  float total = 0.0f;
  for (int c = 0; c < classes; ++c) {
    const float e = expf(x[c] - top.value);
    total += e;
    x[c] = e;
  }
  const float inverse = 1.0f / total, factor = weight * scale;
  for (int c = 0; c < classes; ++c) x[c] = (x[c] * inverse - (c == label ? 1.0f : 0.0f)) * factor;
  return {(logf(total) - to_chosen) * weight, signed_gold(expf(to_chosen) * inverse, top.best == label)};
}

PYMTG_DEVICE float warp_sum(float value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

PYMTG_DEVICE Top warp_top(Top top) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const float value = __shfl_xor_sync(kAllLanes, top.value, step);
    const int best = __shfl_xor_sync(kAllLanes, top.best, step);
    top = higher(top, Top{value, best});
  }
  return top;
}

// The same by a warp, its lanes side by side along the classes, of which there are more than lanes.
PYMTG_DEVICE Cell softmax_together(float* x, int classes, int label, float weight, float scale) {
  const int lane = lane_number();
  Top top{x[lane], lane};
  for (int c = lane + kWarp; c < classes; c += kWarp) top = higher(top, x[c], c);
  top = warp_top(top);
  const float to_chosen = x[label] - top.value;
  __syncwarp();  // before x[label] is written over
  float total = 0.0f;
  for (int c = lane; c < classes; c += kWarp) {
    const float e = expf(x[c] - top.value);
    total += e;
    x[c] = e;
  }
  total = warp_sum(total);
  const float inverse = 1.0f / total, factor = weight * scale;
  for (int c = lane; c < classes; c += kWarp) x[c] = (x[c] * inverse - (c == label ? 1.0f : 0.0f)) * factor;
  return {(logf(total) - to_chosen) * weight, signed_gold(expf(to_chosen) * inverse, top.best == label)};
}

// One (row, task) of few classes.
PYMTG_DEVICE void compute_alone(const Layout& layout, const Tile& tile, int row, int task, int64_t column,
                                int classes) {
  int* cell = tile.cells + row * tile.task_pitch + task;
  float* x = tile.x + row * tile.column_pitch + (column - tile.first_column);
  const int label = *cell;
  Cell result{0.0f, as_float(kMissingGold)};
  if (label < 0) {
    for (int c = 0; c < classes; ++c) x[c] = 0.0f;
  } else {
    const float weight = weight_of(layout, tile.first_task + task, column, classes, label);
    if (classes == 1) {
      const Logistic r = logistic(x[0], label);
      x[0] = r.slope * (weight * tile.scale[task]);
      result = {r.loss * weight, r.gold};
    } else {
      result = softmax_alone(x, classes, label, weight, tile.scale[task]);
    }
  }
  *cell = as_int(result.loss);
  tile.gold[row * tile.task_pitch + task] = result.gold;
}

// One (row, task) of many classes, by a warp.
PYMTG_DEVICE void compute_together(const Layout& layout, const Tile& tile, int row, int task, int64_t column,
                                   int classes) {
  int* cell = tile.cells + row * tile.task_pitch + task;
  float* x = tile.x + row * tile.column_pitch + (column - tile.first_column);
  const int label = *cell;
  Cell result{0.0f, as_float(kMissingGold)};
  if (label < 0) {
    for (int c = lane_number(); c < classes; c += kWarp) x[c] = 0.0f;
  } else {
    const float weight = weight_of(layout, tile.first_task + task, column, classes, label);
    result = softmax_together(x, classes, label, weight, tile.scale[task]);
  }
  __syncwarp();  // all lanes have read the label
  if (lane_number() == 0) {
    *cell = as_int(result.loss);
    tile.gold[row * tile.task_pitch + task] = result.gold;
  }
}

// Every (row, task) of the tile: first by threads, neighbours taking neighbouring rows; then, where there are
// tasks of many classes, by warps.
PYMTG_DEVICE void compute_tile(const Layout& layout, const Tile& tile) {
  bool wide = false;
  for (int i = static_cast<int>(threadIdx.x); i < tile.tasks << tile.shift; i += kThreads) {
    const int row = i & (tile.rows - 1), task = i >> tile.shift;
    if (row >= tile.present) continue;
    const int64_t column = layout.offsets[tile.first_task + task];
    const int classes = static_cast<int>(layout.offsets[tile.first_task + task + 1] - column);
    if (classes <= kMostByThread) compute_alone(layout, tile, row, task, column, classes);
    wide |= classes > kMostByThread;
  }
  if (!__syncthreads_or(wide)) return;
  for (int i = warp_number(); i < tile.tasks << tile.shift; i += kWarps) {
    const int row = i & (tile.rows - 1), task = i >> tile.shift;
    if (row >= tile.present) continue;
    const int64_t column = layout.offsets[tile.first_task + task];
    const int classes = static_cast<int>(layout.offsets[tile.first_task + task + 1] - column);
    if (classes > kMostByThread) compute_together(layout, tile, row, task, column, classes);
  }
  __syncthreads();
}

}  // namespace cuda
}  // namespace pymtg
