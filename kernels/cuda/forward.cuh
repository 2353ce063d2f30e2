// The second launch of a step: one pass over the logits gives the sums of the losses, the final gradient, and
// the gold probabilities, which go straight into the data map where a block sees whole rows. Where the sums
// are few, the last block adds them up.
#pragma once

#include "losses.cuh"
#include "record.cuh"
#include "stream.cuh"

namespace pymtg {
namespace cuda {

struct Forward {
  Layout layout;
  Batch batch;
  Map map;
  Scratch scratch;
  Tiles tiles;
  int loss_shift;  // log2 of the tasks that the last block adds up at once
};

PYMTG_DEVICE bool recording(const Forward& a) { return a.map.words != nullptr; }

// What a task's slopes are multiplied by.
PYMTG_DEVICE float scale_of(const Forward& a, int task) {
  const int labels = label_count(a.scratch, a.layout.num_tasks, task).labels;
  return (a.batch.task_weights == nullptr ? 1.0f : a.batch.task_weights[task]) /
         static_cast<float>(max(labels, 1));
}

// Why a (row, task) would keep its row from being recorded.
PYMTG_DEVICE int refusal(const Forward& a, int label, float loss) {
  const bool fault = label == kBadLabel || (label == kMissingLabel && a.map.sample_counts != nullptr);
  return (fault ? has_fault : 0) | (is_finite(loss) ? 0 : not_finite);
}

PYMTG_DEVICE Tile tile_of(const Forward& a, int number, int64_t first_row, unsigned char* shared) {
  Tile tile;
  tile.first_task = a.tiles.starts[number];
  tile.tasks = a.tiles.starts[number + 1] - tile.first_task;
  tile.first_column = a.layout.offsets[tile.first_task];
  tile.columns = static_cast<int>(a.layout.offsets[tile.first_task + tile.tasks] - tile.first_column);
  tile.rows = a.tiles.rows;
  tile.shift = 31 - __clz(tile.rows);
  tile.present = static_cast<int>(min(static_cast<int64_t>(tile.rows), a.batch.rows - first_row));
  tile.column_pitch = padded(tile.columns, tile.rows);
  tile.task_pitch = padded(tile.tasks, tile.rows);
  tile.x = reinterpret_cast<float*>(shared);
  tile.cells = reinterpret_cast<int*>(tile.x + tile.rows * tile.column_pitch);
  tile.gold = reinterpret_cast<float*>(tile.cells + tile.rows * tile.task_pitch);
  tile.scale = tile.gold + tile.rows * tile.task_pitch;
  tile.refused = reinterpret_cast<int*>(tile.scale + tile.tasks);
  return tile;
}

PYMTG_DEVICE void fill_tile(const Forward& a, const Tile& tile, int64_t first_row) {
  const int thread = static_cast<int>(threadIdx.x), lane = lane_number();
  for (int task = thread; task < tile.tasks; task += kThreads)
    tile.scale[task] = scale_of(a, tile.first_task + task);
  for (int row = thread; row < tile.rows; row += kThreads) tile.refused[row] = not_refused;
  __syncthreads();
  for (int row = warp_number(); row < tile.present; row += kWarps) {
    read_row(a.batch, first_row + row, tile.first_column, tile.columns, tile.x + row * tile.column_pitch);
    const int64_t at = (first_row + row) * a.layout.num_tasks + tile.first_task;
    int faults = 0;
    for (int task = lane; task < tile.tasks; task += kWarp) {
      const int label = checked_label(a.scratch, a.layout.wide_labels, at + task);
      faults |= refusal(a, label, 0.0f);
      tile.cells[row * tile.task_pitch + task] = label;
    }
    if (faults != 0) atomicOr(&tile.refused[row], faults);
  }
  __syncthreads();
}

// Sums of the losses over the tile's rows, in their order; which rows are refused.
PYMTG_DEVICE void sum_losses(const Forward& a, const Tile& tile, int64_t group) {
  for (int task = static_cast<int>(threadIdx.x); task < tile.tasks; task += kThreads) {
    float sum = 0.0f;
    for (int row = 0; row < tile.present; ++row) {
      const float loss = as_float(tile.cells[row * tile.task_pitch + task]);
      if (!is_finite(loss)) atomicOr(&tile.refused[row], static_cast<int>(not_finite));
      sum += loss;
    }
    a.scratch.loss_sums[group * a.layout.num_tasks + tile.first_task + task] = sum;
  }
  if (!recording(a)) return;
  __syncthreads();
}

// Whether the rows of an id have all been computed, this one by this warp, the others before. It then sees
// them.
PYMTG_DEVICE bool last_of_its_id(const Scratch& scratch, int64_t row) {
  __syncwarp();  // lane 0's fences hold for what its warp has written and will read
  int left = 0;
  if (lane_number() == 0) {
    __threadfence();
    left = atomicAdd(&scratch.awaited[scratch.heads[row]], -1);
    __threadfence();
  }
  left = __shfl_sync(kAllLanes, left, 0);
  __syncwarp();
  return left == 1;
}

// A warp records a row that stands whole in the tile, or, if it is the last one of its id to be computed, all
// of them.
PYMTG_DEVICE void record_whole(const Forward& a, int64_t row, int refused, const float* gold) {
  const int tasks = a.layout.num_tasks, lane = lane_number();
  refused |= a.scratch.refused[row];  // an id out of range, from the first launch; nobody else writes it
  if (lane == 0 && refused == not_finite) count_rejected(a.map);
  if (a.scratch.kinds[row] == unique_row) {
    if (refused == not_refused) record_unique(a.layout, a.map, a.scratch, row, sample_id(a.batch, row), gold);
    return;
  }
  for (int task = lane; task < tasks; task += kWarp) a.scratch.gold[row * tasks + task] = gold[task];
  if (lane == 0) a.scratch.refused[row] = refused;
  if (!last_of_its_id(a.scratch, row)) return;
  for (int first = 0; first < tasks; first += kTasksPerRecord)
    record_chain(a.layout, a.batch, a.map, a.scratch, a.scratch.heads[row], first);
}

// Rows that stand whole in the tile go into the map; of the others gold goes into memory.
PYMTG_DEVICE void hand_on_gold(const Forward& a, const Tile& tile, int64_t first_row) {
  const int lane = lane_number();
  for (int r = warp_number(); r < tile.present; r += kWarps) {
    const int64_t row = first_row + r;
    const float* gold = tile.gold + r * tile.task_pitch;
    const int refused = tile.refused[r];
    if (a.scratch.heads != nullptr) {
      record_whole(a, row, refused, gold);
      continue;
    }
    if (lane == 0 && refused != not_refused) atomicOr(&a.scratch.refused[row], refused);
    float* to = a.scratch.gold + row * a.layout.num_tasks + tile.first_task;
    for (int task = lane; task < tile.tasks; task += kWarp) to[task] = gold[task];
  }
}

PYMTG_DEVICE void forward_tile(const Forward& a, int number, int64_t group, unsigned char* shared) {
  const int64_t first_row = group * a.tiles.rows;
  const Tile tile = tile_of(a, number, first_row, shared);
  fill_tile(a, tile, first_row);
  compute_tile(a.layout, tile);
  if (a.batch.gradient != nullptr)
    for (int row = warp_number(); row < tile.present; row += kWarps)
      write_row(tile.x + row * tile.column_pitch, tile.columns,
                a.batch.gradient + (first_row + row) * a.layout.num_logits + tile.first_column);
  sum_losses(a, tile, group);
  if (recording(a)) hand_on_gold(a, tile, first_row);
}

// A tile that is one task of very many classes.
template <class Logit>
PYMTG_DEVICE void forward_streamed(const Forward& a, int task, int64_t group, unsigned char* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t column = a.layout.offsets[task];
  const int classes = static_cast<int>(a.layout.offsets[task + 1] - column);
  Exchange& exchange = *reinterpret_cast<Exchange*>(shared);
  float* cache =
      classes <= a.tiles.cached_floats ? reinterpret_cast<float*>(shared) + kExchangeFloats : nullptr;
  const float scale = scale_of(a, task);
  float sum = 0.0f;
  const int64_t end = min(a.batch.rows, (group + 1) * a.tiles.rows);
  for (int64_t row = group * a.tiles.rows; row < end; ++row) {
    const Logit* from =
        static_cast<const Logit*>(a.batch.logits) + row * a.batch.row_stride + column * a.batch.column_stride;
    float* to = a.batch.gradient == nullptr ? nullptr : a.batch.gradient + row * a.layout.num_logits + column;
    const int label = checked_label(a.scratch, a.layout.wide_labels, row * a.layout.num_tasks + task);
    Cell cell{0.0f, as_float(kMissingGold)};
    if (label >= 0)
      cell = softmax_streamed(from, a.batch.column_stride, classes, label,
                              weight_of(a.layout, task, column, classes, label), scale, cache, exchange, to);
    else if (to != nullptr)
      for (int c = thread; c < classes; c += kThreads) to[c] = 0.0f;
    sum += cell.loss;
    if (thread != 0 || !recording(a)) continue;
    const int refused = refusal(a, label, cell.loss);
    if (refused != not_refused) atomicOr(&a.scratch.refused[row], refused);
    a.scratch.gold[row * a.layout.num_tasks + task] = cell.gold;
  }
  if (thread == 0) a.scratch.loss_sums[group * a.layout.num_tasks + task] = sum;
}

PYMTG_DEVICE void forward_block(const Forward& a, unsigned char* shared) {
  // Neighbouring blocks are neighbouring tiles: what one leaves of a sector of memory the next one finds in
  // the cache.
  const int number = static_cast<int>(blockIdx.x % static_cast<unsigned>(a.tiles.count));
  const int64_t group = blockIdx.x / static_cast<unsigned>(a.tiles.count);
  const int task = a.tiles.starts[number];
  if (a.layout.offsets[task + 1] - a.layout.offsets[task] <= kMostInTile) {
    forward_tile(a, number, group, shared);
    return;
  }
  switch (a.batch.logit_type) {
    case LogitType::float32:
      return forward_streamed<float>(a, task, group, shared);
    case LogitType::float16:
      return forward_streamed<Half>(a, task, group, shared);
    case LogitType::bfloat16:
      return forward_streamed<Bfloat>(a, task, group, shared);
  }
}

PYMTG_GLOBAL void PYMTG_BOUNDS(kThreads, 4) forward_kernel(Forward a) {
  PYMTG_SHARED(shared);
  forward_block(a, shared);
  if (a.scratch.arrived == nullptr || !last_to_arrive(a.scratch.arrived)) return;
  for (int first = 0; first < a.layout.num_tasks; first += 1 << a.loss_shift) {
    __syncthreads();
    add_up_losses(a.layout, a.batch, a.scratch, gridDim.x / static_cast<unsigned>(a.tiles.count), first,
                  a.loss_shift, reinterpret_cast<double*>(shared));
  }
}

}  // namespace cuda
}  // namespace pymtg
