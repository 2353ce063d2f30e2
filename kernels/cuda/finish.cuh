// The last launch of a step, where the forward pass has left something to do: the losses from the blocks'
// sums, and the rows that have not been recorded yet.
#pragma once

#include "losses.cuh"
#include "record.cuh"

namespace pymtg {
namespace cuda {

struct Finish {
  Layout layout;
  Batch batch;
  Map map;
  Scratch scratch;
  int64_t groups;   // of rows, whose sums there are
  int loss_blocks;  // blocks that add up losses; the rest record
  bool recorded;    // nothing is left to record
};

PYMTG_GLOBAL void PYMTG_BOUNDS(kThreads, 4) finish_kernel(Finish a) {
  PYMTG_SHARED(shared);
  const int block = static_cast<int>(blockIdx.x);
  if (block < a.loss_blocks) {
    add_up_losses(a.layout, a.batch, a.scratch, a.groups, block << kLossShift, kLossShift,
                  reinterpret_cast<double*>(shared));
    return;
  }
  const int chunks = (a.layout.num_tasks + kTasksPerRecord - 1) / kTasksPerRecord;
  const int64_t unit = static_cast<int64_t>(block - a.loss_blocks) * kWarps + warp_number();
  const int64_t row = unit / chunks;
  const int chunk = static_cast<int>(unit % chunks);
  if (row >= a.batch.rows) return;
  if (chunk == 0 && lane_number() == 0 && a.scratch.refused[row] == not_finite) count_rejected(a.map);
  if (a.scratch.kinds[row] != later_row)
    record_chain(a.layout, a.batch, a.map, a.scratch, row, chunk * kTasksPerRecord);
}

}  // namespace cuda
}  // namespace pymtg
