// The losses from the sums that blocks have left: added up in one order, in float64.
#pragma once

#include "access.cuh"
#include "maths.cuh"

namespace pymtg {
namespace cuda {

constexpr int kLossShift = 3, kMostLossShift = 8;  // log2 of the tasks that a block adds up at once

// A block adds up 1 << shift tasks from first_task on: several threads a task, each with every so-manieth
// sum, one of them what they found. groups: of rows, whose sums there are; shared: a number a thread.
PYMTG_DEVICE void add_up_losses(const Layout& layout, const Batch& batch, const Scratch& scratch,
                                int64_t groups, int first_task, int shift, double* shared) {
  const int thread = static_cast<int>(threadIdx.x), part = thread >> shift, parts = kThreads >> shift;
  const int column = thread & ((1 << shift) - 1);
  const int task = first_task + column, num_tasks = layout.num_tasks;
  double sum = 0;
  if (task < num_tasks) {
#pragma unroll 8
    for (int64_t group = part; group < groups; group += parts)
      sum += scratch.loss_sums[group * num_tasks + task];
  }
  shared[thread] = sum;
  bool bad = false;  // an id out of range spoils all losses
  for (int table = thread; table < scratch.tables; table += kThreads) bad |= scratch.bad_ids[table] != 0;
  bad = __syncthreads_or(bad);
  if (part != 0 || task >= num_tasks) return;
  for (int other = 1; other < parts; ++other) sum += shared[(other << shift) + column];
  const LabelCount count = label_count(scratch, num_tasks, task);
  bad |= count.bad;
  batch.losses[task] = bad ? as_float(kMissingGold) : static_cast<float>(sum / max(count.labels, 1));
}

// Whether a block is the last of its launch to come here. It then sees what the others wrote before.
PYMTG_DEVICE bool last_to_arrive(int* arrived) {
  // The fences of the thread that counts hold for what its block has written and will read: barriers stand
  // between.
  __syncthreads();
  bool last = false;
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(arrived, 1) == static_cast<int>(gridDim.x) - 1;
    __threadfence();
  }
  return __syncthreads_or(last);
}

}  // namespace cuda
}  // namespace pymtg
