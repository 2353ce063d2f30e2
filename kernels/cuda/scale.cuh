// The backward pass: each column of the gradient times its task's upstream gradient. In place, a thread whose
// factors are all one is done before it has read any of the gradient.
#pragma once

#include "access.cuh"

namespace pymtg {
namespace cuda {

constexpr int kScaleRows = 32;  // that a block takes
constexpr int kScaleColumns = 4 * kThreads;

struct Scale {
  const float* gradient;  // [rows, columns]
  const float* upstream;  // [T], or [1]
  const int* tasks;       // [columns] task of each column, or null: upstream is for all
  float* out;             // [rows, columns]
  int64_t rows, columns;
  int column_blocks;
};

PYMTG_GLOBAL void PYMTG_BOUNDS(kThreads, 4) scale_kernel(Scale a) {
  const unsigned column_blocks = static_cast<unsigned>(a.column_blocks);
  const int64_t first_row = static_cast<int64_t>(blockIdx.x / column_blocks) * kScaleRows;
  const int64_t end_row = min(first_row + kScaleRows, a.rows);
  const int64_t start = static_cast<int64_t>(blockIdx.x % column_blocks) * kScaleColumns;
  // Four neighbours where all rows are aligned, else every 256th column.
  const bool aligned = a.columns % 4 == 0 && unaligned(a.gradient) == 0 && unaligned(a.out) == 0;
  const int64_t first = start + (aligned ? 4 : 1) * static_cast<int64_t>(threadIdx.x);
  const int64_t step = aligned ? 1 : kThreads;
  float factors[4];
  bool changes = false;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int64_t column = first + k * step;
    factors[k] = column < a.columns ? a.upstream[a.tasks == nullptr ? 0 : a.tasks[column]] : 1.0f;
    changes |= factors[k] != 1.0f;
  }
  if (a.out == a.gradient && !changes) return;
  if (aligned) {
    if (first >= a.columns) return;
#pragma unroll 4
    for (int64_t row = first_row; row < end_row; ++row) {
      Quad<float> quad = load_quad(a.gradient + row * a.columns + first);
#pragma unroll
      for (int k = 0; k < 4; ++k) quad.at[k] *= factors[k];
      *reinterpret_cast<Quad<float>*>(a.out + row * a.columns + first) = quad;
    }
    return;
  }
#pragma unroll 4
  for (int64_t row = first_row; row < end_row; ++row) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t column = first + k * step;
      if (column < a.columns)
        a.out[row * a.columns + column] = a.gradient[row * a.columns + column] * factors[k];
    }
  }
}

}  // namespace cuda
}  // namespace pymtg
