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
constexpr int kSlots = 2048;        // of a block's hash table
constexpr int kRowsPerTable = 512;  // that a table gets on the average, a block where rows are sorted
constexpr int kUnlisted = -2;       // a link of a row that found its table full

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
// where one is at fault.
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
      bad |= label <= lowest;
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

// An open-addressing table in shared memory. A slot belongs to an id once a row of it is there. It then holds
// the row that was put in last, which links to the one before: rows come in any order, so the lists do too.
struct Table {
  int rows[kSlots], first[kSlots], last[kSlots], count[kSlots];
};

PYMTG_DEVICE void insert(const Prepare& a, Table& table, int row, int64_t id) {
  int slot = static_cast<int>(scrambled(id) >> 32) & (kSlots - 1);
  for (int probe = 0; probe < kSlots; ++probe, slot = (slot + 1) & (kSlots - 1)) {
    const int seen = atomicCAS(&table.rows[slot], -1, row);
    if (seen >= 0 && sample_id(a.batch, seen) != id) continue;
    a.scratch.links[row] = seen < 0 ? -1 : atomicExch(&table.rows[slot], row);
    atomicMin(&table.first[slot], row);
    atomicMax(&table.last[slot], row);
    atomicAdd(&table.count[slot], 1);
    return;
  }
  a.scratch.links[row] = kUnlisted;
}

PYMTG_DEVICE int slot_of(const Prepare& a, const Table& table, int64_t id) {
  int slot = static_cast<int>(scrambled(id) >> 32) & (kSlots - 1);
  while (sample_id(a.batch, table.rows[slot]) != id) slot = (slot + 1) & (kSlots - 1);
  return slot;
}

// The rows of an id, and the next one after a row, or -1.
struct Twins {
  int first, next, count;
};

// What follows a row, either in the list or in the batch, whichever is shorter where the rows lie evenly.
PYMTG_DEVICE int next_twin(const Prepare& a, const Table& table, int slot, int row, int64_t id) {
  const int64_t count = table.count[slot];
  if (row == table.last[slot]) return -1;
  int next = row + 1;
  if (count * count > a.batch.rows) {
    while (sample_id(a.batch, next) != id) ++next;
    return next;
  }
  next = table.last[slot];
  for (int other = table.rows[slot]; other >= 0; other = a.scratch.links[other])
    if (other > row) next = min(next, other);
  return next;
}

// Where the table was full, as it then was for all rows of the id: every row is looked at.
PYMTG_DEVICE Twins found_twins(const Prepare& a, int row, int64_t id) {
  Twins twins{row, -1, 0};
  for (int other = static_cast<int>(a.batch.rows) - 1; other >= 0; --other) {
    if (sample_id(a.batch, other) != id) continue;
    ++twins.count;
    if (other > row) twins.next = other;
    twins.first = min(twins.first, other);
  }
  return twins;
}

PYMTG_DEVICE Twins twins_of(const Prepare& a, const Table& table, int row, int64_t id) {
  if (a.scratch.links[row] == kUnlisted) return found_twins(a, row, id);
  const int slot = slot_of(a, table, id);
  return {table.first[slot], next_twin(a, table, slot, row, id), table.count[slot]};
}

// Writes what the other launches need to know of a row; returns whether its id is out of range.
PYMTG_DEVICE bool settle(const Prepare& a, int row, int64_t id, Twins twins) {
  a.scratch.next_rows[row] = twins.next;
  a.scratch.kinds[row] = twins.first < row ? later_row : twins.next < 0 ? unique_row : first_row;
  if (a.scratch.heads != nullptr) {
    a.scratch.heads[row] = twins.first;
    a.scratch.awaited[row] = twins.count;
  }
  const bool known = id >= 0 && id < a.map.num_samples;
  if (!known) note_fault(a.scratch, Fault::sample_id, row, 0, id, a.layout.handle, a.map.num_samples);
  // A refusal that the caller has found stays (see record); else there is none yet.
  a.scratch.refused[row] =
      (a.scratch.row_chunks > 0 ? not_refused : a.scratch.refused[row]) | (known ? 0 : has_fault);
  a.scratch.counts_before[row] = known && a.map.sample_counts != nullptr ? a.map.sample_counts[id] : 0;
  return !known;
}

// Notes whether one of a block's ids is out of range.
PYMTG_DEVICE void note_bad_ids(const Prepare& a, int block, bool bad) {
  bad = __syncthreads_or(bad);
  if (threadIdx.x == 0 && a.scratch.bad_ids != nullptr) a.scratch.bad_ids[block] = bad;
}

// Rows come sorted by id: who stands at the first of an id goes through all of them.
PYMTG_DEVICE void link_sorted(const Prepare& a, int block) {
  const int* order = a.scratch.order;
  const int rows = static_cast<int>(a.batch.rows), start = block * kRowsPerTable;
  bool bad = false;
  for (int at = start + static_cast<int>(threadIdx.x); at < min(start + kRowsPerTable, rows);
       at += kThreads) {
    const int64_t id = sample_id(a.batch, order[at]);
    if (at > 0 && sample_id(a.batch, order[at - 1]) == id) continue;
    int end = at + 1;
    while (end < rows && sample_id(a.batch, order[end]) == id) ++end;
    for (int i = at; i < end; ++i)
      bad |= settle(a, order[i], id, {order[at], i + 1 < end ? order[i + 1] : -1, end - at});
  }
  note_bad_ids(a, block, bad);
}

// Table number `number` takes the rows whose ids fall to it; every block looks at all ids.
PYMTG_DEVICE void link_rows(const Prepare& a, int number, Table& table) {
  const int rows = static_cast<int>(a.batch.rows), thread = static_cast<int>(threadIdx.x);
  for (int slot = thread; slot < kSlots; slot += kThreads) {
    table.rows[slot] = table.last[slot] = -1;
    table.first[slot] = INT32_MAX;
    table.count[slot] = 0;
  }
  __syncthreads();
  for (int row = thread; row < rows; row += kThreads) {
    const int64_t id = sample_id(a.batch, row);
    if (table_of(a, id) == number) insert(a, table, row, id);
  }
  __syncthreads();
  bool bad = false;
  for (int row = thread; row < rows; row += kThreads) {
    const int64_t id = sample_id(a.batch, row);
    if (table_of(a, id) == number) bad |= settle(a, row, id, twins_of(a, table, row, id));
  }
  note_bad_ids(a, number, bad);
}

PYMTG_GLOBAL void PYMTG_BOUNDS(kThreads, 4) prepare_kernel(Prepare a) {
  PYMTG_SHARED(shared);
  int* words = reinterpret_cast<int*>(shared);
  const int block = static_cast<int>(blockIdx.x);
  if (block == 0 && threadIdx.x == 0 && a.scratch.arrived != nullptr) *a.scratch.arrived = 0;
  if (block < a.scratch.tables) {
    if (a.scratch.order != nullptr)
      link_sorted(a, block);
    else
      link_rows(a, block, *reinterpret_cast<Table*>(shared));
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
