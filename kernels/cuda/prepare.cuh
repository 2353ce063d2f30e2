// The first launch of a step: what the others need to know about labels and sample ids.
//
// Labels are checked, counted by task, and left in the fewest bytes, so that the wide integers they often are
// get read once. Rows of the same id are linked in the order of the batch.
#pragma once

#include "access.cuh"

namespace pymtg {
namespace cuda {

constexpr int kTasksPerBlock = 32;
constexpr int kReadAtOnce = 4;
constexpr int kSlots = 4096;         // of a block's hash table
constexpr int kRowsPerTable = 1024;  // that a table gets, on the average
constexpr int kUnlisted = -2;        // a link of a row that found its table full

struct Prepare {
  Layout layout;
  Batch batch;
  Map map;
  Scratch scratch;
};

PYMTG_DEVICE void write_label(const Prepare& a, int64_t at, int label) {
  if (a.layout.wide_labels)
    static_cast<int32_t*>(a.scratch.labels)[at] = label;
  else
    static_cast<uint8_t*>(a.scratch.labels)[at] = static_cast<uint8_t>(label);
}

PYMTG_DEVICE int checked(int64_t target, int64_t ignore_index, int64_t classes) {
  if (target == ignore_index) return kMissingLabel;
  return target < 0 || target >= classes ? kBadLabel : static_cast<int>(target);
}

// A thread checks every kWarps-th row of a task from `first` on; returns the number of labels, its complement
// where a target is out of range.
template <class Label>
PYMTG_DEVICE int check_labels(const Prepare& a, int task, int64_t first, int64_t end) {
  const int64_t classes = max(a.layout.offsets[task + 1] - a.layout.offsets[task], static_cast<int64_t>(2));
  const Label* from = static_cast<const Label*>(a.batch.targets) + task * a.batch.target_column_stride;
  const int64_t stride = a.batch.target_row_stride;
  const int lowest =
      a.map.sample_counts != nullptr ? kMissingLabel : kBadLabel;  // up to which a label is a fault
  int count = 0;
  int64_t fault_row = -1;
  bool bad = false;
  for (int64_t row = first; row < end; row += kReadAtOnce * kWarps) {
    Label targets[kReadAtOnce];
#pragma unroll
    for (int i = 0; i < kReadAtOnce; ++i) targets[i] = from[min(row + i * kWarps, end - 1) * stride];
#pragma unroll
    for (int i = 0; i < kReadAtOnce; ++i) {
      if (row + i * kWarps >= end) break;
      const int label = checked(static_cast<int64_t>(targets[i]), a.batch.ignore_index, classes);
      write_label(a, (row + i * kWarps) * a.layout.num_tasks + task, label);
      count += label >= 0;
      bad |= label == kBadLabel;
      if (label <= lowest && fault_row < 0) fault_row = row + i * kWarps;
    }
  }
  if (fault_row >= 0) {
    const int64_t target = static_cast<int64_t>(from[fault_row * stride]);
    note_fault(a.scratch, target == a.batch.ignore_index ? Fault::missing : Fault::target, fault_row, task,
               target, a.layout.handle, a.map.num_samples);
  }
  return bad ? ~count : count;
}

// A warp's lanes are neighbouring tasks; the block's warps share the rows of a chunk.
template <class Label>
PYMTG_DEVICE void count_labels(const Prepare& a, int block, int* shared) {
  const int blocks_of_tasks = (a.layout.num_tasks + kTasksPerBlock - 1) / kTasksPerBlock;
  const int chunk = block / blocks_of_tasks, lane = lane_number(), warp = warp_number();
  const int task = block % blocks_of_tasks * kTasksPerBlock + lane;
  const bool present = task < a.layout.num_tasks;
  const int64_t first = a.batch.rows * chunk / a.scratch.row_chunks;
  const int64_t end = a.batch.rows * (chunk + 1) / a.scratch.row_chunks;
  shared[warp * kTasksPerBlock + lane] = present ? check_labels<Label>(a, task, first + warp, end) : 0;
  __syncthreads();
  if (warp != 0 || !present) return;
  LabelCount sum{0, false};
  for (int w = 0; w < kWarps; ++w) sum = added(sum, shared[w * kTasksPerBlock + lane]);
  a.scratch.label_counts[static_cast<int64_t>(chunk) * a.layout.num_tasks + task] =
      sum.bad ? ~sum.labels : sum.labels;
}

PYMTG_DEVICE uint64_t scrambled(int64_t id) { return static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15ull; }

// The table that an id falls to: its upper 16 bits, scaled. Every block asks for every row: no division.
PYMTG_DEVICE int table_of(const Prepare& a, int64_t id) {
  const unsigned upper = static_cast<unsigned>(scrambled(id) >> 48);
  return static_cast<int>(upper * static_cast<unsigned>(a.scratch.tables) >> 16);
}

// An open-addressing table in shared memory: a slot holds the row that was put in last of those that share
// its id, which links to the one before. Rows come in any order, so the lists do too.
PYMTG_DEVICE void insert(const Prepare& a, int* slots, int row, int64_t id) {
  int slot = static_cast<int>(scrambled(id) >> 32) & (kSlots - 1);
  for (int probe = 0; probe < kSlots; ++probe, slot = (slot + 1) & (kSlots - 1)) {
    const int seen = atomicCAS(&slots[slot], -1, row);
    if (seen >= 0 && sample_id(a.batch, seen) != id) continue;
    // An id keeps its slot once it has it, so whatever row stands there now is one of the same id.
    a.scratch.links[row] = seen < 0 ? -1 : atomicExch(&slots[slot], row);
    return;
  }
  a.scratch.links[row] = kUnlisted;
}

PYMTG_DEVICE int head_of_list(const Prepare& a, const int* slots, int64_t id) {
  int slot = static_cast<int>(scrambled(id) >> 32) & (kSlots - 1);
  while (sample_id(a.batch, slots[slot]) != id) slot = (slot + 1) & (kSlots - 1);
  return slots[slot];
}

struct Twins {
  bool earlier;
  int next;  // the first row after, or INT32_MAX
};

PYMTG_DEVICE Twins met(Twins twins, int row, int other) {
  return {twins.earlier || other<row, other> row ? min(twins.next, other) : twins.next};
}

PYMTG_DEVICE void link(const Prepare& a, const int* slots, int row, int64_t id) {
  Twins twins{false, INT32_MAX};
  if (a.scratch.links[row] == kUnlisted) {  // as all rows of this id are
    for (int other = 0; other < a.batch.rows; ++other)
      if (sample_id(a.batch, other) == id) twins = met(twins, row, other);
  } else {
    for (int other = head_of_list(a, slots, id); other >= 0; other = a.scratch.links[other])
      twins = met(twins, row, other);
  }
  const bool last = twins.next == INT32_MAX;
  a.scratch.next_rows[row] = last ? -1 : twins.next;
  a.scratch.kinds[row] = twins.earlier ? later_row : last ? unique_row : first_row;
}

// Table number `table` takes the rows whose ids fall to it; every block looks at all ids.
PYMTG_DEVICE void link_rows(const Prepare& a, int table, int* slots) {
  const int rows = static_cast<int>(a.batch.rows), thread = static_cast<int>(threadIdx.x);
  for (int slot = thread; slot < kSlots; slot += kThreads) slots[slot] = -1;
  __syncthreads();
  for (int row = thread; row < rows; row += kThreads) {
    const int64_t id = sample_id(a.batch, row);
    if (table_of(a, id) == table) insert(a, slots, row, id);
  }
  __syncthreads();
  bool bad = false;
  for (int row = thread; row < rows; row += kThreads) {
    const int64_t id = sample_id(a.batch, row);
    if (table_of(a, id) != table) continue;
    link(a, slots, row, id);
    const bool known = id >= 0 && id < a.map.num_samples;
    if (!known) note_fault(a.scratch, Fault::sample_id, row, 0, id, a.layout.handle, a.map.num_samples);
    // A refusal that the caller has found stays (see record); else there is none yet.
    a.scratch.refused[row] =
        (a.scratch.row_chunks > 0 ? not_refused : a.scratch.refused[row]) | (known ? 0 : has_fault);
    a.scratch.counts_before[row] = known && a.map.sample_counts != nullptr ? a.map.sample_counts[id] : 0;
    bad |= !known;
  }
  bad = __syncthreads_or(bad);
  if (thread == 0 && a.scratch.bad_ids != nullptr) a.scratch.bad_ids[table] = bad;
}

PYMTG_GLOBAL void PYMTG_BOUNDS(kThreads, 4) prepare_kernel(Prepare a) {
  PYMTG_SHARED(shared);
  int* words = reinterpret_cast<int*>(shared);
  const int block = static_cast<int>(blockIdx.x);
  if (block < a.scratch.tables) {
    link_rows(a, block, words);
    return;
  }
  switch (a.batch.target_type) {
    case LabelType::uint8:
      return count_labels<uint8_t>(a, block - a.scratch.tables, words);
    case LabelType::int32:
      return count_labels<int32_t>(a, block - a.scratch.tables, words);
    case LabelType::int64:
      return count_labels<int64_t>(a, block - a.scratch.tables, words);
  }
}

}  // namespace cuda
}  // namespace pymtg
