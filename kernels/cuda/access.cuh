// Reading and writing of device memory: logits of any dtype, labels, ids, rows in groups of four.
#pragma once

#include "arguments.cuh"
#include "device.cuh"

namespace pymtg {
namespace cuda {

// Bits of a half or bfloat16 number: neither needs CUDA's own headers.
struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

PYMTG_DEVICE float widened(float value) { return value; }
PYMTG_DEVICE float widened(Bfloat value) { return as_float(static_cast<int32_t>(value.bits) << 16); }
PYMTG_DEVICE float widened(Half value) {
#ifdef PYMTG_EMULATED
  return emulator::half_to_float(value.bits);
#else
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#endif
}

// Four neighbours, which one instruction moves where they are aligned.
template <class Logit>
struct alignas(4 * sizeof(Logit)) Quad {
  Logit at[4];
};

template <class Logit>
PYMTG_DEVICE Quad<float> load_quad(const Logit* from) {
  const Quad<Logit> quad = *reinterpret_cast<const Quad<Logit>*>(from);
  return {{widened(quad.at[0]), widened(quad.at[1]), widened(quad.at[2]), widened(quad.at[3])}};
}

// Elements before the first aligned group of four.
template <class Logit>
PYMTG_DEVICE int unaligned(const Logit* from) {
  const int past = static_cast<int>(reinterpret_cast<uintptr_t>(from) / sizeof(Logit) % 4);
  return (4 - past) % 4;
}

// A lane's four numbers lie in neighbouring banks of shared memory, as those of the lanes 8, 16 and 24
// further on do: each takes its four in an order of its own, so that a warp meets no bank twice.
PYMTG_DEVICE float chosen(const Quad<float>& quad, int i) {
  const float low = i & 1 ? quad.at[1] : quad.at[0], high = i & 1 ? quad.at[3] : quad.at[2];
  return i & 2 ? high : low;
}

template <class Logit>
PYMTG_DEVICE void read_logits(const Logit* from, int64_t column_stride, int n, float* to) {
  const int lane = lane_number();
  if (column_stride != 1) {
    for (int c = lane; c < n; c += kWarp) to[c] = widened(from[c * column_stride]);
    return;
  }
  const int head = min(unaligned(from), n), quads = (n - head) / 4, tail = head + 4 * quads;
  if (lane < head) to[lane] = widened(from[lane]);
  if (lane < n - tail) to[tail + lane] = widened(from[tail + lane]);
#pragma unroll 4
  for (int q = lane; q < quads; q += kWarp) {
    const int c = head + 4 * q;
    const Quad<float> quad = load_quad(from + c);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int i = (k + lane / 8) % 4;
      to[c + i] = chosen(quad, i);
    }
  }
}

// A warp copies n logits of a row into shared memory.
PYMTG_DEVICE void read_row(const Batch& batch, int64_t row, int64_t column, int n, float* to) {
  const int64_t at = row * batch.row_stride + column * batch.column_stride;
  switch (batch.logit_type) {
    case LogitType::float32:
      return read_logits(static_cast<const float*>(batch.logits) + at, batch.column_stride, n, to);
    case LogitType::float16:
      return read_logits(static_cast<const Half*>(batch.logits) + at, batch.column_stride, n, to);
    case LogitType::bfloat16:
      return read_logits(static_cast<const Bfloat*>(batch.logits) + at, batch.column_stride, n, to);
  }
}

// A warp copies n numbers from shared memory to a row of the gradient.
PYMTG_DEVICE void write_row(const float* from, int n, float* to) {
  const int lane = lane_number();
  const int head = min(unaligned(to), n), quads = (n - head) / 4, tail = head + 4 * quads;
  if (lane < head) to[lane] = from[lane];
  if (lane < n - tail) to[tail + lane] = from[tail + lane];
#pragma unroll 2
  for (int q = lane; q < quads; q += kWarp) {
    const int c = head + 4 * q;
    Quad<float> turned, quad;
#pragma unroll
    for (int k = 0; k < 4; ++k) turned.at[k] = from[c + (k + lane / 8) % 4];
#pragma unroll
    for (int k = 0; k < 4; ++k) quad.at[k] = chosen(turned, (k + 4 - lane / 8) % 4);
    *reinterpret_cast<Quad<float>*>(to + c) = quad;
  }
}

PYMTG_DEVICE int64_t sample_id(const Batch& batch, int64_t row) {
  return batch.wide_ids ? static_cast<const int64_t*>(batch.sample_ids)[row]
                        : static_cast<const int32_t*>(batch.sample_ids)[row];
}

// A label as the first launch has left it: from 0 on, or kMissingLabel, or kBadLabel.
PYMTG_DEVICE int checked_label(const Scratch& scratch, bool wide, int64_t at) {
  if (wide) return static_cast<const int32_t*>(scratch.labels)[at];
  const int label = static_cast<const uint8_t*>(scratch.labels)[at];
  return label >= kMostByteClasses ? label - 256 : label;
}

struct LabelCount {
  int labels;
  bool bad;  // a label is at fault
};

// count: of some rows, its complement where a label of one is at fault.
PYMTG_DEVICE LabelCount added(LabelCount sum, int count) {
  return {sum.labels + (count < 0 ? ~count : count), sum.bad || count < 0};
}

// Number of a task's labels in the batch.
PYMTG_DEVICE LabelCount label_count(const Scratch& scratch, int num_tasks, int task) {
  LabelCount sum{0, false};
  for (int chunk = 0; chunk < scratch.row_chunks; ++chunk)
    sum = added(sum, scratch.label_counts[static_cast<int64_t>(chunk) * num_tasks + task]);
  return sum;
}

// Whoever finds the first entry zero writes the others: the first fault stays until the host has read it.
PYMTG_DEVICE void note_fault(const Scratch& scratch, Fault fault, int64_t row, int64_t task, int64_t value,
                             int64_t layout, int64_t num_samples) {
  auto* code = reinterpret_cast<unsigned long long*>(scratch.faults);
  if (atomicCAS(code, 0ull, static_cast<unsigned long long>(fault)) != 0ull) return;
  const int64_t entries[] = {row, task, value, layout, num_samples};
#pragma unroll
  for (int i = 0; i < 5; ++i) scratch.faults[1 + i] = entries[i];
}

}  // namespace cuda
}  // namespace pymtg
