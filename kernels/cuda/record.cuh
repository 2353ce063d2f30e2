// Recording a row's gold probabilities at its sample.
#pragma once

#include "access.cuh"
#include "maths.cuh"

namespace pymtg {
namespace cuda {

// Observations of a sample with complete labels, this one counted: counts stop at the largest integer.
PYMTG_DEVICE int one_more(int count) { return count < INT32_MAX ? count + 1 : INT32_MAX; }

// One observation of one task where labels may be missing.
PYMTG_DEVICE Words observe_counted(Words words, float gold, int16_t* count) {
  if (gold != gold) return words;
  const int n = *count < INT16_MAX ? *count + 1 : INT16_MAX;
  *count = static_cast<int16_t>(n);
  return observe(words, gold, n);
}

constexpr int kTasksPerRecord = 128;  // that a warp records of a row at once

// A warp records a row of gold probabilities, one after the other in memory, that no other row shares its id
// with.
PYMTG_DEVICE void record_unique(const Layout& layout, const Map& map, const Scratch& scratch, int64_t row,
                                int64_t id, const float* gold) {
  const int tasks = layout.num_tasks, lane = lane_number();
  int32_t* means = map.words + id * 2 * tasks;
  int32_t* stds = means + tasks;
  const int n = one_more(scratch.counts_before[row]);
#pragma unroll 4
  for (int task = lane; task < tasks; task += kWarp) {
    Words words{means[task], stds[task]};
    words = map.task_counts == nullptr
                ? observe(words, gold[task], n)
                : observe_counted(words, gold[task], map.task_counts + id * tasks + task);
    means[task] = words.mean;
    stds[task] = words.std;
  }
  if (lane == 0 && map.sample_counts != nullptr) map.sample_counts[id] = n;
}

// A warp records some tasks of the rows of one id, which begin with `row`, in the order of the batch.
PYMTG_DEVICE void record_chain(const Layout& layout, const Batch& batch, const Map& map,
                               const Scratch& scratch, int64_t row, int first_task) {
  constexpr int kEach = kTasksPerRecord / kWarp;
  const int tasks = layout.num_tasks, lane = lane_number();
  const int64_t id = sample_id(batch, row);
  if (id < 0 || id >= map.num_samples) return;
  int32_t* means = map.words + id * 2 * tasks;
  int32_t* stds = means + tasks;
  Words words[kEach];
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int task = first_task + lane + k * kWarp;
    words[k] = task < tasks ? Words{means[task], stds[task]} : Words{0, 0};
  }
  int n = scratch.counts_before[row];
  for (int64_t at = row; at >= 0; at = scratch.next_rows[at]) {
    if (scratch.refused[at] != not_refused) continue;
    n = one_more(n);
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const int task = first_task + lane + k * kWarp;
      if (task >= tasks) continue;
      const float gold = scratch.gold[at * tasks + task];
      words[k] = map.task_counts == nullptr
                     ? observe(words[k], gold, n)
                     : observe_counted(words[k], gold, map.task_counts + id * tasks + task);
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
  if (first_task == 0 && lane == 0 && map.sample_counts != nullptr) map.sample_counts[id] = n;
}

PYMTG_DEVICE void count_rejected(const Map& map) {
  atomicAdd(reinterpret_cast<unsigned long long*>(map.rejected), 1ull);
}

}  // namespace cuda
}  // namespace pymtg
