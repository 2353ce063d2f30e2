// Tensors come in as addresses and the stream as its handle: no torch headers, one build for every torch.
// pymtg/_cuda_backend.py is the only caller and has checked shapes, dtypes and devices.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cross_entropy.cuh"
#include "device.cuh"
#include "tiling.cuh"

namespace py = pybind11;
namespace cuda = pymtg::cuda;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// The device of the tensors is the current one for the length of a call.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    if (cudaGetDevice(&before_) == cudaSuccess && before_ != device)
      changed_ = cudaSetDevice(device) == cudaSuccess;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// A task layout on a device; the addresses are those of tensors that the caller keeps.
struct LayoutPlan {
  cuda::Layout layout;
  uintptr_t task_of_column;
};

LayoutPlan make_plan(int num_tasks, int64_t num_logits, uintptr_t offsets, uintptr_t pos_weight,
                     uintptr_t class_weight, uintptr_t task_of_column, bool wide_labels, int64_t handle) {
  return {{num_tasks, num_logits, at<int64_t>(offsets), at<float>(pos_weight), at<float>(class_weight),
           wide_labels, handle},
          task_of_column};
}

cuda::Map map_at(uintptr_t words, uintptr_t counts, bool missing, uintptr_t rejected, int64_t num_samples) {
  return {at<int32_t>(words), missing ? nullptr : at<int32_t>(counts),
          missing ? at<int16_t>(counts) : nullptr, at<int64_t>(rejected), num_samples};
}

// (first task of each tile and the number of tasks, rows of a tile, whether one tile holds all, floats of
// shared memory)
py::tuple tiling(const std::vector<int64_t>& offsets, int64_t rows) {
  const cuda::Tiling t = cuda::tiling_for(offsets, rows);
  return py::make_tuple(t.starts, t.rows, t.whole, t.floats);
}

struct TilesOnDevice {
  cuda::Tiles tiles;
  int floats;
};

TilesOnDevice make_tiles(uintptr_t starts, int count, int rows, bool whole, int floats) {
  return {{at<int>(starts), count, rows, whole, floats - cuda::kExchangeFloats}, floats};
}

int64_t scratch_bytes(const LayoutPlan& plan, const TilesOnDevice& tiles, int64_t rows, bool recording) {
  cuda::Scratch scratch{};
  return cuda::lay_out(scratch, 0, plan.layout, tiles.tiles, rows, recording);
}

int cross_entropy(const LayoutPlan& plan, const TilesOnDevice& tiles, int device, uintptr_t stream,
                  uintptr_t logits, int logit_type, int64_t rows, int64_t row_stride, int64_t column_stride,
                  uintptr_t targets, int target_type, int64_t target_row_stride, int64_t target_column_stride,
                  int64_t ignore_index, uintptr_t weights, uintptr_t losses, uintptr_t gradient,
                  uintptr_t sample_ids, bool wide_ids, uintptr_t order, uintptr_t words, uintptr_t counts,
                  bool missing, uintptr_t rejected, int64_t num_samples, uintptr_t scratch_memory,
                  uintptr_t faults) {
  const cuda::Batch batch{rows,
                          at<void>(logits),
                          static_cast<cuda::LogitType>(logit_type),
                          row_stride,
                          column_stride,
                          at<void>(targets),
                          static_cast<cuda::LabelType>(target_type),
                          target_row_stride,
                          target_column_stride,
                          ignore_index,
                          at<float>(weights),
                          at<float>(losses),
                          at<float>(gradient),
                          at<void>(sample_ids),
                          wide_ids};
  const cuda::Map map = map_at(words, counts, missing, rejected, num_samples);
  cuda::Scratch scratch{};
  scratch.order = at<int>(order);
  scratch.faults = at<long long>(faults);
  cuda::lay_out(scratch, scratch_memory, plan.layout, tiles.tiles, rows, map.words != nullptr);
  const OnDevice on(device);
  return cuda::cross_entropy(plan.layout, tiles.tiles, tiles.floats, batch, map, scratch, at<void>(stream));
}

// gold: [rows, T] as in Scratch; refused: [rows] of Refusal; memory: [4, rows] int32.
int record(const LayoutPlan& plan, int device, uintptr_t stream, uintptr_t gold, uintptr_t refused,
           int64_t rows, uintptr_t sample_ids, bool wide_ids, uintptr_t order, uintptr_t words,
           uintptr_t counts, bool missing, uintptr_t rejected, int64_t num_samples, uintptr_t memory,
           uintptr_t faults) {
  cuda::Batch batch{};
  batch.rows = rows;
  batch.sample_ids = at<void>(sample_ids);
  batch.wide_ids = wide_ids;
  cuda::Scratch scratch{};
  scratch.tables = cuda::tables_for(rows);
  scratch.kinds = at<int>(memory);
  scratch.next_rows = scratch.kinds + rows;
  scratch.links = scratch.next_rows + rows;
  scratch.counts_before = scratch.links + rows;
  scratch.refused = at<int>(refused);
  scratch.order = at<int>(order);
  scratch.gold = at<float>(gold);
  scratch.faults = at<long long>(faults);
  const OnDevice on(device);
  return cuda::record(plan.layout, batch, map_at(words, counts, missing, rejected, num_samples), scratch,
                      at<void>(stream));
}

// out may be gradient. upstream: one number a task, or, `single`, one for all.
int scale_gradient(const LayoutPlan& plan, int device, uintptr_t stream, uintptr_t gradient,
                   uintptr_t upstream, bool single, uintptr_t out, int64_t rows) {
  const OnDevice on(device);
  return cuda::scale_gradient(at<float>(gradient), at<float>(upstream),
                              single ? nullptr : at<int>(plan.task_of_column), at<float>(out), rows,
                              plan.layout.num_logits, at<void>(stream));
}

const char* error_name(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace

PYBIND11_MODULE(PYMTG_CUDA_MODULE, m) {
  m.doc() = "CUDA kernels of pymtg; loads without a driver.";
  m.attr("archs") = PYMTG_CUDA_ARCHS;
  m.attr("most_byte_classes") = cuda::kMostByteClasses;
  m.attr("most_hashed") = cuda::kMostHashed;
  py::class_<LayoutPlan>(m, "LayoutPlan", "A task layout on a device.").def(py::init(&make_plan));
  py::class_<TilesOnDevice>(m, "Tiles", "How a batch's logits are cut up.").def(py::init(&make_tiles));
  m.def("tiling", &tiling);
  m.def("scratch_bytes", &scratch_bytes);
  m.def("cross_entropy", &cross_entropy);
  m.def("record", &record);
  m.def("scale_gradient", &scale_gradient);
  m.def("error_name", &error_name);
#ifdef PYMTG_EMULATED
  m.def("launches", [] { return emulator::launches; });
#endif
}
