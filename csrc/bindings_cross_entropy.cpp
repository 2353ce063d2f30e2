// Tensors come in as addresses: bfloat16 and the like have no numpy form, and an address costs a tenth of a
// microsecond. pymtg/_backend.py is the only caller and has checked shapes, dtypes and strides.
#include <pybind11/stl.h>

#include "bindings.hpp"
#include "cross_entropy.hpp"

namespace py = pybind11;
using pymtg::LayoutPlan;
using pymtg::Outcome;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// (problem, row, task, value); problem is 0 where all went well.
py::tuple as_tuple(const Outcome& o) {
  return py::make_tuple(static_cast<int>(o.problem), o.row, o.task, o.value);
}

pymtg::MapState map_state(uintptr_t words, uintptr_t counts, bool missing, uintptr_t rejected,
                          int64_t num_samples) {
  return {at<int32_t>(words), missing ? nullptr : at<int32_t>(counts),
          missing ? at<int16_t>(counts) : nullptr, at<int64_t>(rejected), num_samples};
}

template <class Scalar>
py::tuple forward(const LayoutPlan& layout, uintptr_t logits, int64_t rows, int64_t row_stride,
                  uintptr_t targets, int target_type, int64_t target_stride, int64_t ignore_index,
                  uintptr_t weights, uintptr_t losses, uintptr_t gradient, uintptr_t sample_ids,
                  uintptr_t words, uintptr_t counts, bool missing, uintptr_t rejected, int64_t num_samples,
                  int num_threads) {
  pymtg::ForwardArgs<Scalar> args{
      &layout,
      at<Scalar>(logits),
      rows,
      row_stride,
      {at<void>(targets), static_cast<pymtg::TargetType>(target_type), target_stride, ignore_index},
      at<Scalar>(weights),
      at<Scalar>(losses),
      at<Scalar>(gradient),
      at<int64_t>(sample_ids),
      map_state(words, counts, missing, rejected, num_samples),
      num_threads};
  Outcome outcome;
  {
    py::gil_scoped_release release;
    outcome = pymtg::forward<Scalar>(args);
  }
  return as_tuple(outcome);
}

// heads: how many, and the stride between them; weights: [T, heads], or per_row [rows, T, heads], where the
// rows' losses are then written too.
template <class Scalar>
py::tuple forward_heads(const LayoutPlan& layout, uintptr_t logits, int64_t heads, int64_t head_stride,
                        int64_t rows, int64_t row_stride, uintptr_t targets, int target_type,
                        int64_t target_stride, int64_t ignore_index, uintptr_t weights, bool per_row,
                        uintptr_t total, uintptr_t losses, uintptr_t gradient, uintptr_t row_losses,
                        int num_threads) {
  pymtg::ForwardArgs<Scalar> args{};
  args.layout = &layout;
  args.logits = at<Scalar>(logits);
  args.rows = rows;
  args.row_stride = row_stride;
  args.targets = {at<void>(targets), static_cast<pymtg::TargetType>(target_type), target_stride,
                  ignore_index};
  (per_row ? args.row_weights : args.task_weights) = at<Scalar>(weights);
  args.losses = at<Scalar>(losses);
  args.gradient = at<Scalar>(gradient);
  args.num_threads = num_threads;
  args.heads = heads;
  args.head_stride = head_stride;
  args.row_losses = at<Scalar>(row_losses);
  args.total = at<Scalar>(total);
  Outcome outcome;
  {
    py::gil_scoped_release release;
    outcome = pymtg::forward<Scalar>(args);
  }
  return as_tuple(outcome);
}

template <class Scalar>
void scale_gradient(const LayoutPlan& layout, uintptr_t gradient, uintptr_t upstream, uintptr_t out,
                    int64_t rows, int num_threads) {
  py::gil_scoped_release release;
  pymtg::scale_gradient<Scalar>(layout, at<Scalar>(gradient), at<Scalar>(upstream), at<Scalar>(out), rows,
                                num_threads);
}

py::tuple record(uintptr_t probabilities, uintptr_t sample_ids, int64_t rows, int64_t num_tasks,
                 uintptr_t words, uintptr_t counts, bool missing, uintptr_t rejected, int64_t num_samples) {
  Outcome outcome;
  {
    py::gil_scoped_release release;
    outcome = pymtg::record(map_state(words, counts, missing, rejected, num_samples), num_tasks,
                            at<float>(probabilities), at<int64_t>(sample_ids), rows);
  }
  return as_tuple(outcome);
}

template <class Scalar>
bool all_ones(uintptr_t values, int64_t n) {
  const Scalar* v = at<Scalar>(values);
  for (int64_t i = 0; i < n; ++i)
    if (v[i] != Scalar(1)) return false;
  return true;
}

}  // namespace

void register_cross_entropy(py::module_& m) {
  py::class_<LayoutPlan>(m, "LayoutPlan", "A task layout prepared for the kernels.")
      .def(py::init<const std::vector<int64_t>&, std::vector<double>, std::vector<double>>(),
           py::arg("num_classes"), py::arg("pos_weight"), py::arg("class_weight"));
  m.def("cross_entropy_forward_float", &forward<float>);
  m.def("cross_entropy_forward_double", &forward<double>);
  m.def("cross_entropy_heads_float", &forward_heads<float>);
  m.def("cross_entropy_heads_double", &forward_heads<double>);
  m.def("scale_gradient_float", &scale_gradient<float>);
  m.def("scale_gradient_double", &scale_gradient<double>);
  m.def("all_ones_float", &all_ones<float>);
  m.def("all_ones_double", &all_ones<double>);
  m.def("record", &record);
}
