// Fused multi-task cross-entropy on a GPU: two or three launches forward and one backward, whatever the
// number of tasks.
//
//   prepare   checks and counts the labels, links rows of the same sample id                    (prepare.cuh)
//   forward   one pass over the logits: sums of losses, final gradient, gold; where blocks see
//             whole rows, these go into the data map; few sums become losses                    (forward.cuh)
//   finish    if need be: losses from the sums, in one order; the data map's rows               (finish.cuh)
//   scale     backward: the gradient times the upstream gradient                                (scale.cuh)
//
// The contract is that of pymtg/_reference.py, but that bad values are noted in a buffer instead of raised.
// Everything runs on one stream, allocates nothing and never waits for the device.
#pragma once

#include "arguments.cuh"

namespace pymtg {
namespace cuda {

// Rows up to which those of an id are found by hash tables: every block looks at all ids. Above, the caller
// sorts them.
constexpr int kMostHashed = 1 << 17;

// Blocks that link the rows of a batch.
int tables_for(int64_t rows);

// The bytes of scratch memory that a step needs, and where its parts lie from `base` on.
int64_t lay_out(Scratch& scratch, uintptr_t base, const Layout& layout, const Tiles& tiles, int64_t rows,
                bool recording);

// Errors of the launches, as cudaError_t numbers them; 0 where all went well.
int cross_entropy(const Layout& layout, const Tiles& tiles, int shared_floats, const Batch& batch,
                  const Map& map, const Scratch& scratch, void* stream);

// Records gold probabilities [rows, T] that stand in scratch.gold, but for the rows that scratch.refused
// marks.
int record(const Layout& layout, const Batch& batch, const Map& map, const Scratch& scratch, void* stream);

// tasks: the task of each column, or null: upstream is one number. Where out is gradient, only what changes
// is touched.
int scale_gradient(const float* gradient, const float* upstream, const int* tasks, float* out, int64_t rows,
                   int64_t columns, void* stream);

}  // namespace cuda
}  // namespace pymtg
