// The last launch of a step: the losses from the blocks' sums, and the rows that have not been recorded yet.
#pragma once

#include "record.cuh"

namespace pymtg {
namespace cuda {

constexpr int kTasksPerSum = 8;       // that a block adds up the sums of
constexpr int kTasksPerRecord = 128;  // that a warp records of a row at once

struct Finish {
  Layout layout;
  Batch batch;
  Map map;
  Scratch scratch;
  int64_t groups;        // of rows, whose sums there are
  int loss_blocks;       // blocks that add up losses; the rest record
  bool unique_recorded;  // the second launch has recorded the rows that share their id with no other
};

// Each of 32 threads adds up every 32nd sum of a task in float64, one of them what they found: always in one
// order.
PYMTG_DEVICE void finish_losses(const Finish& a, int block, double* shared) {
  const int thread = static_cast<int>(threadIdx.x), column = thread % kTasksPerSum,
            part = thread / kTasksPerSum;
  constexpr int kParts = kThreads / kTasksPerSum;
  const int task = block * kTasksPerSum + column, num_tasks = a.layout.num_tasks;
  double sum = 0;
  if (task < num_tasks) {
#pragma unroll 4
    for (int64_t group = part; group < a.groups; group += kParts)
      sum += a.scratch.loss_sums[group * num_tasks + task];
  }
  shared[thread] = sum;
  __syncthreads();
  if (part != 0 || task >= num_tasks) return;
  for (int other = 1; other < kParts; ++other) sum += shared[other * kTasksPerSum + column];
  const LabelCount count = label_count(a.scratch, num_tasks, task);
  bool bad = count.bad;  // an id out of range spoils all losses
  for (int table = 0; table < a.scratch.tables; ++table) bad |= a.scratch.bad_ids[table] != 0;
  a.batch.losses[task] = bad ? as_float(kMissingGold) : static_cast<float>(sum / max(count.labels, 1));
}

// A warp records some tasks of the rows of one id, which begin with `row`, in the order of the batch.
PYMTG_DEVICE void record_chain(const Finish& a, int64_t row, int first_task) {
  constexpr int kEach = kTasksPerRecord / kWarp;
  const int tasks = a.layout.num_tasks, lane = lane_number();
  const int64_t id = sample_id(a.batch, row);
  if (id < 0 || id >= a.map.num_samples) return;
  int32_t* means = a.map.words + id * 2 * tasks;
  int32_t* stds = means + tasks;
  Words words[kEach];
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int task = first_task + lane + k * kWarp;
    words[k] = task < tasks ? Words{means[task], stds[task]} : Words{0, 0};
  }
  int n = a.scratch.counts_before[row];
  for (int64_t at = row; at >= 0; at = a.scratch.next_rows[at]) {
    if (a.scratch.refused[at] != not_refused) continue;
    n = one_more(n);
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const int task = first_task + lane + k * kWarp;
      if (task >= tasks) continue;
      const float gold = a.scratch.gold[at * tasks + task];
      words[k] = a.map.task_counts == nullptr
                     ? observe(words[k], gold, n)
                     : observe_counted(words[k], gold, a.map.task_counts + id * tasks + task);
    }
  }
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int task = first_task + lane + k * kWarp;
    if (task < tasks) {
      means[task] = words[k].mean;
      stds[task] = words[k].std;
    }
  }
  if (first_task == 0 && lane == 0 && a.map.sample_counts != nullptr) a.map.sample_counts[id] = n;
}

PYMTG_GLOBAL void PYMTG_BOUNDS(kThreads, 4) finish_kernel(Finish a) {
  PYMTG_SHARED(shared);
  const int block = static_cast<int>(blockIdx.x);
  if (block < a.loss_blocks) {
    finish_losses(a, block, reinterpret_cast<double*>(shared));
    return;
  }
  const int chunks = (a.layout.num_tasks + kTasksPerRecord - 1) / kTasksPerRecord;
  const int64_t unit = static_cast<int64_t>(block - a.loss_blocks) * kWarps + warp_number();
  const int64_t row = unit / chunks;
  const int chunk = static_cast<int>(unit % chunks);
  if (row >= a.batch.rows) return;
  if (chunk == 0 && lane_number() == 0 && a.scratch.refused[row] == not_finite)
    atomicAdd(reinterpret_cast<unsigned long long*>(a.map.rejected), 1ull);
  const int kind = a.scratch.kinds[row];
  if (kind == later_row || (kind == unique_row && a.unique_recorded)) return;
  record_chain(a, row, chunk * kTasksPerRecord);
}

}  // namespace cuda
}  // namespace pymtg
