// Fused multi-task cross-entropy: per-task losses, the gradient and the data-map update in one pass over the
// logits.
//
// Logits stand as [B, num_logits], the tasks' segments side by side; targets as [B, T]. Several heads of the
// same tasks stand one after the other, [heads, B, num_logits], and share the targets. See
// pymtg/_reference.py for the same computation in plain torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "isa.hpp"

namespace pymtg {

// How a stretch of tasks is computed. `rows_one`, `rows_two`: tasks of one or two logits, vectors run over
// the tasks of a row. `lanes`: any class counts, 16 rows are transposed into lanes and each task is computed
// column by column.
enum class SegmentKind { rows_one, rows_two, lanes };

struct Segment {
  SegmentKind kind;
  int64_t first_task, end_task;
};

// A task layout as the kernels see it: plain pointers, since the hot sources use no std:: template.
struct PlanView {
  int64_t num_tasks, num_logits;
  const int64_t* offsets;          // [T + 1]
  const int32_t* labels;           // [T] number of valid labels: 2 for one logit, else C_t
  const float* pos_weight;         // [T] or null
  const float* class_weight;       // [num_logits] or null
  const double* exact_pos_weight;  // the same as they were given
  const double* exact_class_weight;
  const Segment* segments;  // in the order of the tasks
  int64_t num_segments;
  int64_t strip_columns;  // columns that a strip of the lanes path may hold
};

class LayoutPlan {
 public:
  // Empty weights mean ones.
  LayoutPlan(const std::vector<int64_t>& num_classes, std::vector<double> pos_weight,
             std::vector<double> class_weight);
  PlanView view() const;
  bool has_lanes() const;

 private:
  std::vector<int64_t> offsets_;
  std::vector<int32_t> labels_;
  std::vector<double> exact_pos_weight_, exact_class_weight_;
  std::vector<float> pos_weight_, class_weight_;
  std::vector<Segment> segments_;
  int64_t strip_columns_;
};

enum class TargetType { uint8, int32, int64 };

struct Targets {
  const void* data;
  TargetType type;
  int64_t row_stride;  // in elements; columns are adjacent
  int64_t ignore_index;
};

// A data map's state, see "What a data map holds" in docs/architecture.md. Exactly one of the counts is
// given.
struct MapState {
  int32_t* words = nullptr;          // [M, 2, T] packed mean and std
  int32_t* sample_counts = nullptr;  // [M], complete labels
  int16_t* task_counts = nullptr;    // [M, T], labels may be missing
  int64_t* num_rejected = nullptr;   // [1]
  int64_t num_samples = 0;
};

enum class Problem { none, target_out_of_range, missing_label, sample_id_out_of_range };

struct Outcome {
  Problem problem = Problem::none;
  int64_t row = 0, task = 0, value = 0;  // where it was found and what stood there
};

template <class Scalar>
struct ForwardArgs {
  const LayoutPlan* layout;
  const Scalar* logits;
  int64_t rows, row_stride;  // in elements; columns are adjacent
  Targets targets;
  const Scalar* task_weights;  // [T, heads], folded into the gradient, or null
  Scalar* losses;              // [T, heads], unweighted
  Scalar* gradient;            // [heads, rows, num_logits] of sum_tk w_tk loss_tk, or null
  const int64_t* sample_ids;   // [rows], with a map
  MapState map;                // words null: nothing is recorded; one head only
  int num_threads;
  int64_t heads = 1, head_stride = 0;   // in elements, between the heads' logits
  const Scalar* row_weights = nullptr;  // [rows, T, heads] in place of task_weights, or null
  Scalar* row_losses = nullptr;         // [rows, T, heads] loss over number of labels, with row_weights
  Scalar* total = nullptr;              // [1] the weighted sum of the losses, or null
};

// Nothing is written unless every target and id is valid.
template <class Scalar>
Outcome forward(const ForwardArgs<Scalar>& args);

// out[b, c] = gradient[b, c] * upstream[task of c]
template <class Scalar>
void scale_gradient(const LayoutPlan& plan, const Scalar* gradient, const Scalar* upstream, Scalar* out,
                    int64_t rows, int num_threads);

// Record gold probabilities [rows, T] that were computed elsewhere: NaN is a missing label, a set sign bit
// says that the prediction was right. Nothing is written unless every id is valid.
Outcome record(const MapState& map, int64_t num_tasks, const float* signed_probabilities,
               const int64_t* sample_ids, int64_t rows);

// --- one copy per instruction set
// -------------------------------------------------------------------------------

// A softmax is summed in parts: one running sum over thousands of classes would lose the small ones.
constexpr int64_t kClassesPerSum = 32;
constexpr int64_t kLanesOfRows = 16;  // rows that are computed together
constexpr int64_t kTasksOfPadding =
    32;  // scratch rows are longer than T by this, so that whole vectors may be used

template <class Scalar>
struct RowsArgs {
  PlanView plan;
  const Scalar* logits;
  int64_t rows, row_stride,
      readable;                // at most kLanesOfRows rows; elements that may be read from `logits` on
  const int32_t* targets;      // [rows, pitch], -1 where missing
  int64_t pitch;               // T + kTasksOfPadding
  const Scalar* scale;         // [pitch] task weight over number of labels
  Scalar* loss_sums;           // [pitch], added to
  Scalar* gradient;            // or null; as wide as num_logits
  float* gold;                 // [rows, pitch] signed gold probabilities, or null
  Scalar* row_losses;          // [rows, pitch], or null
  uint8_t* refused;            // [rows] set where a loss is not finite
  int32_t* const* state_rows;  // [rows] where to prefetch, or null
  float* strip;                // scratch of the lanes path
};

// clang-format off
PYMTG_DECLARE_FOR_EACH_ISA(
  void compute_rows(const RowsArgs<float>& args);
  void record_row(int32_t* words, int32_t* sample_count, int16_t* task_counts, const float* gold, int64_t num_tasks);
  // Adds the labels that are there to counts [T]; false if one is out of range.
  bool count_targets(const Targets& targets, int64_t first_row, int64_t end_row, const int32_t* labels, int32_t* counts, int64_t num_tasks);
  void convert_targets(const Targets& targets, int64_t first_row, int64_t rows, int32_t* out, int64_t pitch, int64_t num_tasks);
  void scale_columns(const float* in, const float* factors, float* out, int64_t rows, int64_t columns)
)
// clang-format on

// The same in float64, one row and task at a time: for gradient checks and for models trained in double,
// where no vector code of our own is worth its weight.
void compute_rows(const RowsArgs<double>& args);

}  // namespace pymtg
