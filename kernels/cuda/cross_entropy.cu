#include <algorithm>

#include "cross_entropy.cuh"
#include "finish.cuh"
#include "forward.cuh"
#include "prepare.cuh"
#include "scale.cuh"

namespace pymtg {
namespace cuda {
namespace {

constexpr int64_t kRowsPerChunk = 256;
constexpr int64_t kMostChunks = 64;
// Sums of losses, and tasks, that one block adds up beside its share of the logits: more take a launch of
// their own.
constexpr int64_t kMostByLastBlock = 16384, kMostTasksByLastBlock = 1024;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int last_error() { return static_cast<int>(cudaGetLastError()); }

// Hands out aligned stretches of the scratch memory.
class Allocator {
 public:
  explicit Allocator(uintptr_t base) : base_(base), at_(base) {}

  template <class T>
  void take(T*& pointer, int64_t count) {
    pointer = reinterpret_cast<T*>(at_);
    take_bytes(count * static_cast<int64_t>(sizeof(T)));
  }
  void take(void*& pointer, int64_t bytes) {
    pointer = reinterpret_cast<void*>(at_);
    take_bytes(bytes);
  }
  int64_t used() const { return static_cast<int64_t>(at_ - base_); }

 private:
  void take_bytes(int64_t bytes) { at_ += static_cast<uintptr_t>(ceil_div(bytes, 256) * 256); }

  uintptr_t base_, at_;
};

int launch_prepare(const Layout& layout, const Batch& batch, const Map& map, const Scratch& scratch,
                   void* stream) {
  const int64_t label_blocks = scratch.row_chunks * ceil_div(layout.num_tasks, kTasksPerBlock);
  const Prepare arguments{layout, batch, map, scratch};
  const std::size_t shared = scratch.tables > 0 ? sizeof(Table) : sizeof(int) * kThreads;
  PYMTG_LAUNCH(prepare_kernel, static_cast<unsigned>(scratch.tables + label_blocks), kThreads, shared, stream,
               arguments);
  return last_error();
}

int launch_forward(const Forward& arguments, int64_t groups, int shared_floats, void* stream) {
  std::size_t shared = sizeof(float) * static_cast<std::size_t>(shared_floats);
  if (arguments.scratch.arrived != nullptr) shared = std::max(shared, sizeof(double) * kThreads);
  PYMTG_LAUNCH(forward_kernel, static_cast<unsigned>(groups * arguments.tiles.count), kThreads, shared,
               stream, arguments);
  return last_error();
}

int launch_finish(const Finish& arguments, void* stream) {
  const int64_t units =
      arguments.recorded ? 0 : arguments.batch.rows * ceil_div(arguments.layout.num_tasks, kTasksPerRecord);
  const int64_t blocks = arguments.loss_blocks + ceil_div(units, kWarps);
  PYMTG_LAUNCH(finish_kernel, static_cast<unsigned>(blocks), kThreads, sizeof(double) * kThreads, stream,
               arguments);
  return last_error();
}

}  // namespace

int tables_for(int64_t rows) { return static_cast<int>(ceil_div(rows, kRowsPerTable)); }

int64_t lay_out(Scratch& scratch, uintptr_t base, const Layout& layout, const Tiles& tiles, int64_t rows,
                bool recording) {
  Allocator memory(base);
  const int64_t cells = rows * layout.num_tasks, groups = ceil_div(rows, tiles.rows);
  scratch.row_chunks = static_cast<int>(std::min(ceil_div(rows, kRowsPerChunk), kMostChunks));
  memory.take(scratch.label_counts, static_cast<int64_t>(scratch.row_chunks) * layout.num_tasks);
  memory.take(scratch.labels, cells * (layout.wide_labels ? 4 : 1));
  memory.take(scratch.loss_sums, groups * layout.num_tasks);
  const int64_t recorded = recording ? rows : 0;
  scratch.tables = recording ? tables_for(rows) : 0;
  memory.take(scratch.bad_ids, scratch.tables);
  for (int** part :
       {&scratch.kinds, &scratch.next_rows, &scratch.links, &scratch.counts_before, &scratch.refused})
    memory.take(*part, recorded);
  if (recording && tiles.whole) {
    memory.take(scratch.heads, rows);
    memory.take(scratch.awaited, rows);
  }
  if ((!recording || tiles.whole) && groups * layout.num_tasks <= kMostByLastBlock &&
      layout.num_tasks <= kMostTasksByLastBlock)
    memory.take(scratch.arrived, 1);
  memory.take(scratch.gold, recorded * layout.num_tasks);
  return memory.used();
}

int cross_entropy(const Layout& layout, const Tiles& tiles, int shared_floats, const Batch& batch,
                  const Map& map, const Scratch& scratch, void* stream) {
  if (const int error = launch_prepare(layout, batch, map, scratch, stream)) return error;
  const int64_t groups = ceil_div(batch.rows, tiles.rows);
  int loss_shift = kLossShift;
  while (loss_shift < kMostLossShift && 1 << loss_shift < layout.num_tasks) ++loss_shift;
  const Forward forward{layout, batch, map, scratch, tiles, loss_shift};
  if (const int error = launch_forward(forward, groups, shared_floats, stream)) return error;
  if (scratch.arrived != nullptr) return 0;
  const int loss_blocks = static_cast<int>(ceil_div(layout.num_tasks, 1 << kLossShift));
  const bool recorded = map.words == nullptr || scratch.heads != nullptr;
  return launch_finish({layout, batch, map, scratch, groups, loss_blocks, recorded}, stream);
}

int record(const Layout& layout, const Batch& batch, const Map& map, const Scratch& scratch, void* stream) {
  if (const int error = launch_prepare(layout, batch, map, scratch, stream)) return error;
  return launch_finish({layout, batch, map, scratch, 0, 0, false}, stream);
}

int scale_gradient(const float* gradient, const float* upstream, const int* tasks, float* out, int64_t rows,
                   int64_t columns, void* stream) {
  const int64_t column_blocks = ceil_div(columns, kScaleColumns),
                blocks = column_blocks * ceil_div(rows, kScaleRows);
  const Scale arguments{gradient, upstream, tasks, out, rows, columns, static_cast<int>(column_blocks)};
  PYMTG_LAUNCH(scale_kernel, static_cast<unsigned>(blocks), kThreads, 0, stream, arguments);
  return last_error();
}

}  // namespace cuda
}  // namespace pymtg
