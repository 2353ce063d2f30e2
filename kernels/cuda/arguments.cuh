// What the kernels are told: plain pointers into device memory, passed by value.
#pragma once

#include <cstdint>

namespace pymtg {
namespace cuda {

enum class LogitType { float32, float16, bfloat16 };
enum class LabelType { uint8, int32, int64 };
enum class Fault { none, target, missing, sample_id };  // as pymtg/_faults.py numbers them

struct Layout {
  int num_tasks;
  int64_t num_logits;
  const int64_t* offsets;     // [T + 1]
  const float* pos_weight;    // [T] or null
  const float* class_weight;  // [num_logits] or null
  bool wide_labels;           // some task has more classes than a byte has room for
  int64_t handle;             // by which Python knows the layout
};

// How the logits are cut up: a block takes `rows` rows of the tasks of one tile.
struct Tiles {
  const int* starts;  // [count + 1] first tasks
  int count;
  int rows;           // a power of two, at most 32
  bool whole;         // one tile holds all tasks
  int cached_floats;  // of shared memory, for a task that is streamed
};

struct Batch {
  int64_t rows;
  const void* logits;
  LogitType logit_type;
  int64_t row_stride, column_stride;  // in elements
  const void* targets;
  LabelType target_type;
  int64_t target_row_stride, target_column_stride;
  int64_t ignore_index;
  const float* task_weights;  // [T], folded into the gradient, or null
  float* losses;              // [T], unweighted
  float* gradient;            // [rows, num_logits], or null
  const void* sample_ids;     // [rows], or null: nothing is recorded
  bool wide_ids;              // int64, else int32
};

// A data map's state, see "What a data map holds" in docs/architecture.md.
struct Map {
  int32_t* words;          // [M, 2, T]
  int32_t* sample_counts;  // [M] for complete labels, or null
  int16_t* task_counts;    // [M, T] where labels may be missing, or null
  int64_t* rejected;       // [1]
  int64_t num_samples;
};

// Where a row stands among those of its id.
enum RowKind { unique_row, first_row, later_row };

// Written by one launch of a step, read by the next ones; nothing in it needs to be set before.
struct Scratch {
  int row_chunks;      // in which labels are counted; 0 where there are none, as gold is given
  int* label_counts;   // [row_chunks, T], the complement where a label is at fault
  void* labels;        // [rows, T] checked: bytes, or int32 for wide labels
  float* loss_sums;    // [row groups, T]
  int* kinds;          // [rows] RowKind
  int* next_rows;      // [rows] the next row of the same id, or -1
  int* links;          // [rows] lists of the hash tables
  int* counts_before;  // [rows] observations of the row's sample before this step
  int* refused;        // [rows] why a row is not recorded, of Refusal
  int* heads;         // [rows] the first row of the same id, where the forward pass records all rows; or null
  int* awaited;       // [rows] at a head, how many rows of its id have not been computed yet
  int* arrived;       // [1] blocks that are through, where the forward pass adds up the losses too; or null
  const int* order;   // [rows] sorted by id, those of one id as in the batch; or null: hash tables find them
  int tables;         // blocks that link rows; 0 where nothing is recorded
  int* bad_ids;       // [tables] whether an id is out of range, or null
  float* gold;        // [rows, T] gold probabilities, sign set where right, NaN where missing
  long long* faults;  // [8] of the device: code, row, task, value of the first that was met
};

// Bits: the reasons add up. Only rows refused for their losses alone are counted.
enum Refusal { not_refused = 0, not_finite = 1, has_fault = 2 };

// What stands in the place of a checked label. The bytes are these modulo 256.
constexpr int kMissingLabel = -1, kBadLabel = -2;
constexpr int kMostByteClasses = 254;

}  // namespace cuda
}  // namespace pymtg
