// The hot loops of the fused cross-entropy, compiled once per instruction set.
#include <cmath>

#include "cross_entropy.hpp"
#include "datamap_words.hpp"
#include "simd.hpp"

namespace pymtg {
namespace {

constexpr int32_t kMissingGold = 0x7fc00000;  // NaN
constexpr int32_t kSign = INT32_MIN;

struct BinaryResult {
  VF loss, slope;  // slope: d loss / d logit, of the whole loss
  VI gold;         // bits of the gold probability, sign set where the prediction is right
};

// Logistic loss of the logit x against y in {0, 1}, but for its linear part. With e = exp(-|x|) nothing
// overflows, and 1 - p is e / (1 + e) without a subtraction.
PYMTG_INLINE BinaryResult binary(VF x, VI y) {
  const VI positive = y > 0;
  const VF z = positive ? x : -x;
  const VF e = exp_neg(-vabs(x));
  const VF larger = 1.0f / (1.0f + e);
  const VF smaller = e * larger;
  const VI agrees = z >= 0.0f;
  const VF p = agrees ? larger : smaller;
  const VF q = agrees ? smaller : larger;
  const VI hit = positive ? (x > 0.0f) : ~(x > 0.0f);
  return {log1p_unit(e), positive ? -q : q, as_int(p) | (hit & kSign)};
}

// The linear part of a one-logit task's loss, max(-z, 0) with z the logit of the gold class. In the form that
// torch has it, infinite logits give what they give there: NaN, or infinity for a positive one against 0.
PYMTG_INLINE VF linear_part_of_one(VF x, VI y) {
  const VF is_zero = (y > 0) ? VF{} : splat(1.0f);
  return is_zero * x - (x < 0.0f ? x : VF{});
}

// That of two logits with difference x: a softmax with a class at minus infinity has a loss.
PYMTG_INLINE VF linear_part_of_two(VF x, VI y) {
  const VF z = (y > 0) ? x : -x;
  return z >= 0.0f ? VF{} : -z;
}

PYMTG_INLINE void prefetch_state(int32_t* row, int64_t task, int64_t num_tasks) {
  __builtin_prefetch(row + task, 1, 2);
  __builtin_prefetch(row + num_tasks + task, 1, 2);
}

// One vector of tasks of one row. `Two`: two logits a task, else one.
template <bool Two, bool Weighted>
PYMTG_INLINE VI row_vector(const RowsArgs<float>& a, int64_t row, int64_t task, int64_t n) {
  const PlanView& plan = a.plan;
  const int64_t column = plan.offsets[task];
  const float* from = a.logits + row * a.row_stride + column;
  const VI y = load<VI>(a.targets + row * a.pitch + task);
  const VI valid = (y >= 0) & (kLaneNumbers < splat_int(static_cast<int32_t>(n)));
  VF x, weight = splat(1.0f);
  if (Two) {
    const VF low = load_some<VF>(from, 2 * n);
    const VF high = 2 * n > kLanes ? load_some<VF>(from + kLanes, 2 * n - kLanes) : VF{};
    const VF x0 = evens(low, high), x1 = odds(low, high);
    const VF top = vmax(x0, x1);
    x = (x1 - x0) + (top - top);
    if (Weighted) {
      const float* w = plan.class_weight + column;
      const VF wl = load_some<VF>(w, 2 * n);
      const VF wh = 2 * n > kLanes ? load_some<VF>(w + kLanes, 2 * n - kLanes) : VF{};
      weight = (y > 0) ? odds(wl, wh) : evens(wl, wh);
    }
  } else {
    x = load_some<VF>(from, n);
    if (Weighted) weight = (y > 0) ? load_some<VF>(plan.pos_weight + task, n) : splat(1.0f);
  }
  const BinaryResult r = binary(x, y);
  const VF linear = Two ? linear_part_of_two(x, y) : linear_part_of_one(x, y);
  const VF loss = valid ? (linear + r.loss) * weight : VF{};
  float* sums = a.loss_sums + task;
  store(sums, load<VF>(sums) + loss);
  if (a.row_losses != nullptr) store(a.row_losses + row * a.pitch + task, loss);
  if (a.gradient != nullptr) {
    const VF g = valid ? r.slope * (weight * load<VF>(a.scale + task)) : VF{};
    float* to = a.gradient + row * plan.num_logits + column;
    if (Two) {
      store_some(to, interleave_low(-g, g), 2 * n);
      if (2 * n > kLanes) store_some(to + kLanes, interleave_high(-g, g), 2 * n - kLanes);
    } else {
      store_some(to, g, n);
    }
  }
  if (a.gold != nullptr) store(a.gold + row * a.pitch + task, valid ? r.gold : splat_int(kMissingGold));
  return not_finite(loss);
}

template <bool Two, bool Weighted>
__attribute__((noinline)) void rows_segment(const RowsArgs<float>& a, int64_t first, int64_t end) {
  const int64_t num_tasks = a.plan.num_tasks;
  for (int64_t row = 0; row < a.rows; ++row) {
    VI bad{};
    int64_t task = first;
    for (; task + kLanes <= end; task += kLanes) {
      if (a.state_rows != nullptr) prefetch_state(a.state_rows[row], task, num_tasks);
      bad |= row_vector<Two, Weighted>(a, row, task, kLanes);
    }
    if (task < end) {
      if (a.state_rows != nullptr) prefetch_state(a.state_rows[row], task, num_tasks);
      bad |= row_vector<Two, Weighted>(a, row, task, end - task);
    }
    if (any(bad)) a.refused[row] = 1;
  }
}

// Rows of a tile from memory, whole vectors wherever the buffer is long enough, zeros for absent rows.
PYMTG_INLINE void load_tile(VF (&tile)[kLanes], const RowsArgs<float>& a, int64_t column, int64_t columns) {
  for (int64_t r = 0; r < kLanes; ++r) {
    const int64_t at = r * a.row_stride + column;
    if (r >= a.rows)
      tile[r] = VF{};
    else if (at + kLanes <= a.readable)
      tile[r] = load<VF>(a.logits + at);
    else
      tile[r] = load_some<VF>(a.logits + at, columns);
  }
  transpose(tile);
}

// Softmax cross-entropy of one task with its C logits in x [C][kLanes], replaced by the gradient. Returns the
// losses of the rows; gold as in BinaryResult.
template <bool Weighted>
PYMTG_INLINE VF softmax_task(float* x, int64_t num_classes, VI y, VI valid, const float* class_weight,
                             float scale, bool with_gradient, VI& gold) {
  VF top = load<VF>(x);
  VI best{};
  VF chosen = top;
  for (int64_t c = 1; c < num_classes; ++c) {
    const VF v = load<VF>(x + c * kLanes);
    const VI index = splat_int(static_cast<int32_t>(c));
    const VI above = (v > top) | (v != v);  // NaN is passed on
    top = above ? v : top;
    best = above ? index : best;
    chosen = (y == index) ? v : chosen;
  }
  VF total{};
  for (int64_t first = 0; first < num_classes; first += kClassesPerSum) {
    const int64_t end = first + kClassesPerSum < num_classes ? first + kClassesPerSum : num_classes;
    VF part{};
    for (int64_t c = first; c < end; ++c) {
      const VF e = exp_neg(load<VF>(x + c * kLanes) - top);
      part += e;
      store(x + c * kLanes, e);
    }
    total += part;
  }
  VF weight = splat(1.0f);
  if (Weighted && class_weight != nullptr) {
    for (int64_t c = 0; c < num_classes; ++c)
      weight = (y == splat_int(static_cast<int32_t>(c))) ? splat(class_weight[c]) : weight;
  }
  const VF inverse = 1.0f / total;
  const VF to_chosen = chosen - top;  // NaN where the top is infinite, as in torch
  gold = as_int(exp_neg(to_chosen) * inverse) | ((best == y) & kSign);
  const VF loss = log_above_one(total) - to_chosen;
  if (with_gradient) {
    const VF factor = valid ? weight * scale : VF{};
    for (int64_t c = 0; c < num_classes; ++c) {
      const VF p = load<VF>(x + c * kLanes) * inverse;
      const VF g = (y == splat_int(static_cast<int32_t>(c))) ? p - 1.0f : p;
      store(x + c * kLanes, valid ? g * factor : VF{});
    }
  }
  return valid ? loss * weight : VF{};
}

template <bool Weighted>
PYMTG_INLINE VF binary_task(const RowsArgs<float>& a, float* x, int64_t task, bool two, VI y, VI valid,
                            VI& gold) {
  const PlanView& plan = a.plan;
  VF logit, linear, weight = splat(1.0f);
  if (two) {
    const VF x0 = load<VF>(x), x1 = load<VF>(x + kLanes);
    const VF top = vmax(x0, x1);
    logit = (x1 - x0) + (top - top);
    linear = linear_part_of_two(logit, y);
    if (Weighted && plan.class_weight != nullptr) {
      const float* w = plan.class_weight + plan.offsets[task];
      weight = (y > 0) ? splat(w[1]) : splat(w[0]);
    }
  } else {
    logit = load<VF>(x);
    linear = linear_part_of_one(logit, y);
    if (Weighted && plan.pos_weight != nullptr) weight = (y > 0) ? splat(plan.pos_weight[task]) : splat(1.0f);
  }
  const BinaryResult r = binary(logit, y);
  gold = r.gold;
  const VF g = valid ? r.slope * (weight * a.scale[task]) : VF{};
  store(x, two ? -g : g);
  if (two) store(x + kLanes, g);
  return valid ? (linear + r.loss) * weight : VF{};
}

// Tasks first..end, whose columns fit the scratch, for up to kLanes rows.
template <bool Weighted>
__attribute__((noinline)) void lanes_strip(const RowsArgs<float>& a, int64_t first, int64_t end) {
  const PlanView& plan = a.plan;
  const int64_t column = plan.offsets[first];
  const int64_t columns = plan.offsets[end] - column;
  VF tile[kLanes];
  for (int64_t c = 0; c < columns; c += kLanes) {
    load_tile(tile, a, column + c, columns - c);
    for (int i = 0; i < kLanes; ++i) store(a.strip + (c + i) * kLanes, tile[i]);
  }
  VI bad{};
  VF losses[kLanes] = {};  // kept where rows' losses are asked for
  for (int64_t group = first; group < end; group += kLanes) {
    for (int64_t r = 0; r < kLanes; ++r) {
      const VI y = r < a.rows ? load<VI>(a.targets + r * a.pitch + group) : splat_int(-1);
      tile[r] = as_float(y);
      if (a.state_rows != nullptr && r < a.rows) prefetch_state(a.state_rows[r], group, plan.num_tasks);
    }
    transpose(tile);
    const int64_t group_end = group + kLanes < end ? group + kLanes : end;
    for (int64_t task = group; task < group_end; ++task) {
      const VI y = as_int(tile[task - group]);
      const VI valid = y >= 0;
      float* x = a.strip + (plan.offsets[task] - column) * kLanes;
      const int64_t num_classes = plan.offsets[task + 1] - plan.offsets[task];
      const float* weights = plan.class_weight == nullptr ? nullptr : plan.class_weight + plan.offsets[task];
      VI gold;
      const VF loss = num_classes <= 2 ? binary_task<Weighted>(a, x, task, num_classes == 2, y, valid, gold)
                                       : softmax_task<Weighted>(x, num_classes, y, valid, weights,
                                                                a.scale[task], a.gradient != nullptr, gold);
      a.loss_sums[task] += sum(loss);
      if (a.row_losses != nullptr) losses[task - group] = loss;
      bad |= not_finite(loss);
      tile[task - group] = as_float(valid ? gold : splat_int(kMissingGold));
    }
    if (a.gold != nullptr) {
      transpose(tile);
      for (int64_t r = 0; r < a.rows; ++r) store(a.gold + r * a.pitch + group, tile[r]);
    }
    if (a.row_losses != nullptr) {
      transpose(losses);
      for (int64_t r = 0; r < a.rows; ++r) store(a.row_losses + r * a.pitch + group, losses[r]);
    }
  }
  if (a.gradient != nullptr) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      for (int i = 0; i < kLanes; ++i) tile[i] = load<VF>(a.strip + (c + i) * kLanes);
      transpose(tile);
      for (int64_t r = 0; r < a.rows; ++r)
        store_some(a.gradient + r * plan.num_logits + column + c, tile[r], columns - c);
    }
  }
  int32_t lanes[kLanes];
  store(lanes, bad);
  for (int64_t r = 0; r < a.rows; ++r)
    if (lanes[r] != 0) a.refused[r] = 1;
}

void lanes_segment(const RowsArgs<float>& a, int64_t first, int64_t end, bool weighted) {
  const PlanView& plan = a.plan;
  while (first < end) {
    int64_t last = first + 1;
    while (last < end && plan.offsets[last + 1] - plan.offsets[first] <= plan.strip_columns) ++last;
    weighted ? lanes_strip<true>(a, first, last) : lanes_strip<false>(a, first, last);
    first = last;
  }
}

// Wide holds both a label of type T and a number of classes.
template <class T, class Wide>
bool count_typed(const Targets& targets, int64_t first_row, int64_t end_row, const int32_t* labels,
                 int32_t* counts, int64_t num_tasks) {
  const T* data = static_cast<const T*>(targets.data);
  // An ignore_index that the type cannot hold never occurs; the label -1 stands for "none" and is out of
  // range anyway.
  const T ignore = static_cast<T>(targets.ignore_index);
  const bool ignorable = static_cast<int64_t>(ignore) == targets.ignore_index;
  int32_t bad = 0;
  for (int64_t row = first_row; row < end_row; ++row) {
    const T* y = data + row * targets.row_stride;
    if (ignorable) {
      for (int64_t t = 0; t < num_tasks; ++t) {
        const int32_t there = y[t] != ignore;
        counts[t] += there;
        bad |= there & static_cast<int32_t>((y[t] < 0) | (static_cast<Wide>(y[t]) >= labels[t]));
      }
    } else {
      for (int64_t t = 0; t < num_tasks; ++t) {
        counts[t] += 1;
        bad |= static_cast<int32_t>((y[t] < 0) | (static_cast<Wide>(y[t]) >= labels[t]));
      }
    }
  }
  return bad == 0;
}

template <class T>
void convert_typed(const Targets& targets, int64_t first_row, int64_t rows, int32_t* out, int64_t pitch,
                   int64_t num_tasks) {
  const T* data = static_cast<const T*>(targets.data);
  const T ignore = static_cast<T>(targets.ignore_index);
  const bool ignorable = static_cast<int64_t>(ignore) == targets.ignore_index;
  for (int64_t r = 0; r < rows; ++r) {
    const T* y = data + (first_row + r) * targets.row_stride;
    int32_t* to = out + r * pitch;
    if (ignorable)
      for (int64_t t = 0; t < num_tasks; ++t) to[t] = y[t] == ignore ? -1 : static_cast<int32_t>(y[t]);
    else
      for (int64_t t = 0; t < num_tasks; ++t) to[t] = static_cast<int32_t>(y[t]);
  }
}

}  // namespace

namespace PYMTG_ISA_NAMESPACE {

// At most kLanes rows. The segments must come in the order of the tasks: vectors of gold probabilities run
// over a segment's end into the next one's place.
static void compute_row_group(const RowsArgs<float>& a) {
  const bool pos_weighted = a.plan.pos_weight != nullptr, class_weighted = a.plan.class_weight != nullptr;
  for (const Segment* s = a.plan.segments; s != a.plan.segments + a.plan.num_segments; ++s) {
    switch (s->kind) {
      case SegmentKind::rows_one:
        pos_weighted ? rows_segment<false, true>(a, s->first_task, s->end_task)
                     : rows_segment<false, false>(a, s->first_task, s->end_task);
        break;
      case SegmentKind::rows_two:
        class_weighted ? rows_segment<true, true>(a, s->first_task, s->end_task)
                       : rows_segment<true, false>(a, s->first_task, s->end_task);
        break;
      case SegmentKind::lanes:
        lanes_segment(a, s->first_task, s->end_task, pos_weighted || class_weighted);
    }
  }
}

void compute_rows(const RowsArgs<float>& a) {
  for (int64_t row = 0; row < a.rows; row += kLanes) {
    RowsArgs<float> group = a;
    group.rows = a.rows - row < kLanes ? a.rows - row : kLanes;
    group.logits += row * a.row_stride;
    group.readable -= row * a.row_stride;
    group.targets += row * a.pitch;
    group.refused += row;
    if (a.gradient != nullptr) group.gradient += row * a.plan.num_logits;
    if (a.gold != nullptr) group.gold += row * a.pitch;
    if (a.row_losses != nullptr) group.row_losses += row * a.pitch;
    if (a.state_rows != nullptr) group.state_rows += row;
    compute_row_group(group);
  }
}

// Welford's update of one sample's row from gold [T]: NaN is a missing label, the sign bit says "right".
void record_row(int32_t* words, int32_t* sample_count, int16_t* task_counts, const float* gold,
                int64_t num_tasks) {
  if (sample_count != nullptr) {
    const int32_t n = *sample_count < INT32_MAX ? *sample_count + 1 : INT32_MAX;
    *sample_count = n;
    const float inverse = 1.0f / static_cast<float>(n);
    const VI right_step = splat_int(n <= kMostCounted ? kOneRight : 0);
    int64_t t = 0;
    for (; t + kLanes <= num_tasks; t += kLanes)
      record_vector<false>(words + t, words + num_tasks + t, kLanes, load<VI>(gold + t), splat(inverse),
                           right_step);
    if (t < num_tasks)
      record_vector<false>(words + t, words + num_tasks + t, num_tasks - t, load<VI>(gold + t),
                           splat(inverse), right_step);
    return;
  }
  for (int64_t t = 0; t < num_tasks; t += kLanes) {
    const int64_t left = num_tasks - t < kLanes ? num_tasks - t : kLanes;
    int32_t n[kLanes];
    for (int i = 0; i < kLanes; ++i) n[i] = 1;
    for (int64_t i = 0; i < left; ++i) {
      const int32_t before = task_counts[t + i];
      const bool there = gold[t + i] == gold[t + i];
      n[i] = before + (there && before < INT16_MAX);
      task_counts[t + i] = static_cast<int16_t>(n[i]);
      n[i] += n[i] == 0;
    }
    const VI count = load<VI>(n);
    record_vector<true>(words + t, words + num_tasks + t, num_tasks - t, load<VI>(gold + t),
                        1.0f / to_float(count), (count <= kMostCounted) & kOneRight);
  }
}

bool count_targets(const Targets& targets, int64_t first_row, int64_t end_row, const int32_t* labels,
                   int32_t* counts, int64_t num_tasks) {
  switch (targets.type) {
    case TargetType::uint8:
      return count_typed<uint8_t, int32_t>(targets, first_row, end_row, labels, counts, num_tasks);
    case TargetType::int32:
      return count_typed<int32_t, int32_t>(targets, first_row, end_row, labels, counts, num_tasks);
    default:
      return count_typed<int64_t, int64_t>(targets, first_row, end_row, labels, counts, num_tasks);
  }
}

void convert_targets(const Targets& targets, int64_t first_row, int64_t rows, int32_t* out, int64_t pitch,
                     int64_t num_tasks) {
  switch (targets.type) {
    case TargetType::uint8:
      return convert_typed<uint8_t>(targets, first_row, rows, out, pitch, num_tasks);
    case TargetType::int32:
      return convert_typed<int32_t>(targets, first_row, rows, out, pitch, num_tasks);
    default:
      return convert_typed<int64_t>(targets, first_row, rows, out, pitch, num_tasks);
  }
}

void scale_columns(const float* in, const float* factors, float* out, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) out[r * columns + c] = in[r * columns + c] * factors[c];
}

}  // namespace PYMTG_ISA_NAMESPACE
}  // namespace pymtg
