#include "cross_entropy.hpp"

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "duplicates.hpp"

namespace pymtg {
namespace {

// Rows whose losses are summed in float before the sum goes on in double. Fixed, so that neither the number
// of threads nor the instruction set changes the order of any sum.
constexpr int64_t kRowsPerBlock = 2 * kLanesOfRows;
// From this many one- or two-logit tasks in a row on, vectors run over tasks; below, transposing 16 rows
// wastes less.
constexpr int64_t kFewestTasksInRows = 24;
constexpr int64_t kStripColumns = 256;
// Elements below which a second thread costs more than it saves.
constexpr int64_t kElementsPerThread = 16384;

int threads_for(int64_t elements, int64_t chunks, int wanted) {
  const int64_t useful = std::min(chunks, elements / kElementsPerThread + 1);
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(useful, wanted)));
}

Outcome find_bad_target(const PlanView& plan, const Targets& targets, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t task = 0; task < plan.num_tasks; ++task) {
      const int64_t at = row * targets.row_stride + task;
      const int64_t y = targets.type == TargetType::uint8   ? static_cast<const uint8_t*>(targets.data)[at]
                        : targets.type == TargetType::int32 ? static_cast<const int32_t*>(targets.data)[at]
                                                            : static_cast<const int64_t*>(targets.data)[at];
      if (y != targets.ignore_index && (y < 0 || y >= plan.labels[task]))
        return {Problem::target_out_of_range, row, task, y};
    }
  }
  return {};
}

// Counts the labels of each task; says where one is out of range.
Outcome count_labels(const PlanView& plan, const Targets& targets, int64_t rows, int num_threads,
                     std::vector<int32_t>& counts) {
  const int64_t num_tasks = plan.num_tasks;
  const int threads = threads_for(rows * num_tasks, rows, num_threads);
  std::vector<int32_t> partial(static_cast<std::size_t>(threads * num_tasks), 0);
  const auto count = PYMTG_PICK_ISA(current_isa(), count_targets);
  int bad = 0;
#pragma omp parallel for num_threads(threads) reduction(| : bad) schedule(static)
  for (int chunk = 0; chunk < threads; ++chunk)
    bad |= !count(targets, rows * chunk / threads, rows * (chunk + 1) / threads, plan.labels,
                  partial.data() + chunk * num_tasks, num_tasks);
  if (bad) return find_bad_target(plan, targets, rows);
  counts.assign(partial.begin(), partial.begin() + num_tasks);
  for (int chunk = 1; chunk < threads; ++chunk)
    for (int64_t t = 0; t < num_tasks; ++t)
      counts[static_cast<std::size_t>(t)] += partial[static_cast<std::size_t>(chunk * num_tasks + t)];
  return {};
}

Outcome check_ids(const int64_t* ids, int64_t rows, int64_t num_samples) {
  for (int64_t row = 0; row < rows; ++row)
    if (ids[row] < 0 || ids[row] >= num_samples) return {Problem::sample_id_out_of_range, row, 0, ids[row]};
  return {};
}

Outcome check_complete(const PlanView& plan, const Targets& targets, int64_t rows,
                       const std::vector<int32_t>& counts) {
  for (int64_t t = 0; t < plan.num_tasks; ++t) {
    if (counts[static_cast<std::size_t>(t)] == rows) continue;
    std::vector<int32_t> row_labels(static_cast<std::size_t>(plan.num_tasks));
    for (int64_t row = 0; row < rows; ++row) {
      PYMTG_PICK_ISA(current_isa(), convert_targets)(targets, row, 1, row_labels.data(), plan.num_tasks,
                                                     plan.num_tasks);
      if (row_labels[static_cast<std::size_t>(t)] < 0)
        return {Problem::missing_label, row, t, targets.ignore_index};
    }
  }
  return {};
}

void scale(const float* in, const float* factors, float* out, int64_t rows, int64_t columns) {
  PYMTG_PICK_ISA(current_isa(), scale_columns)(in, factors, out, rows, columns);
}
void scale(const double* in, const double* factors, double* out, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) out[r * columns + c] = in[r * columns + c] * factors[c];
}

void record_one(const MapState& map, int64_t num_tasks, int64_t id, const float* gold) {
  PYMTG_PICK_ISA(current_isa(), record_row)
  (map.words + id * 2 * num_tasks, map.sample_counts == nullptr ? nullptr : map.sample_counts + id,
   map.task_counts == nullptr ? nullptr : map.task_counts + id * num_tasks, gold, num_tasks);
}

void compute(const RowsArgs<float>& rows) { PYMTG_PICK_ISA(current_isa(), compute_rows)(rows); }
void compute(const RowsArgs<double>& rows) { compute_rows(rows); }

// What one thread works in.
template <class Scalar>
class Worker {
 public:
  Worker(const ForwardArgs<Scalar>& args, const PlanView& plan, const std::vector<int32_t>& counts,
         const Scalar* scale, const Duplicates& duplicates, float* held_gold, uint8_t* held_refused)
      : args_(args),
        plan_(plan),
        counts_(counts),
        scale_(scale),
        duplicates_(duplicates),
        held_gold_(held_gold),
        held_refused_(held_refused),
        pitch_(plan.num_tasks + kTasksOfPadding),
        // Where vectors run over tasks a single row of them is enough work; its gold then stays in the first
        // cache.
        rows_at_once_(args.layout->has_lanes() ? kLanesOfRows
                                               : std::clamp<int64_t>(4096 / plan.num_tasks, 1, kLanesOfRows)),
        targets_(new int32_t[static_cast<std::size_t>(rows_at_once_ * pitch_)]),
        gold_(new float[static_cast<std::size_t>(rows_at_once_ * pitch_)]),
        row_losses_(args.row_weights == nullptr
                        ? nullptr
                        : new Scalar[static_cast<std::size_t>(rows_at_once_ * pitch_)]),
        strip_(new float[static_cast<std::size_t>((plan.strip_columns + 2 * kLanesOfRows) * kLanesOfRows)]) {
    std::fill_n(targets_.get(), rows_at_once_ * pitch_, -1);
  }

  // Returns the sum of the rows' losses times their weights, where each row has its own.
  double block(int64_t head, int64_t first_row, int64_t end_row, Scalar* loss_sums) {
    std::fill_n(loss_sums, pitch_, Scalar(0));
    double weighted = 0;
    for (int64_t row = first_row; row < end_row; row += rows_at_once_) {
      const int64_t rows = std::min(rows_at_once_, end_row - row);
      some_rows(head, row, rows, loss_sums);
      if (args_.row_weights != nullptr) weighted += weigh_rows(head, row, rows);
    }
    return weighted;
  }

  int64_t num_rejected() const { return num_rejected_; }

 private:
  void some_rows(int64_t head, int64_t row, int64_t rows, Scalar* loss_sums) {
    const bool recording = args_.map.words != nullptr;
    PYMTG_PICK_ISA(current_isa(), convert_targets)
    (args_.targets, row, rows, targets_.get(), pitch_, plan_.num_tasks);
    uint8_t refused[kLanesOfRows] = {};
    int32_t* state_rows[kLanesOfRows];
    if (recording)
      for (int64_t r = 0; r < rows; ++r)
        state_rows[r] = args_.map.words + args_.sample_ids[row + r] * 2 * plan_.num_tasks;

    RowsArgs<Scalar> a{};
    a.plan = plan_;
    a.logits = args_.logits + head * args_.head_stride + row * args_.row_stride;
    a.rows = rows;
    a.row_stride = args_.row_stride;
    a.readable = (args_.rows - 1 - row) * args_.row_stride + plan_.num_logits;
    a.targets = targets_.get();
    a.pitch = pitch_;
    a.scale = scale_ + head * pitch_;
    a.loss_sums = loss_sums;
    a.gradient =
        args_.gradient == nullptr ? nullptr : args_.gradient + (head * args_.rows + row) * plan_.num_logits;
    a.gold = recording ? gold_.get() : nullptr;
    a.row_losses = row_losses_.get();
    a.refused = refused;
    a.state_rows = recording ? state_rows : nullptr;
    a.strip = strip_.get();
    compute(a);
    if (recording) record_rows(row, rows, refused);
  }

  // Hands out the losses of rows that have been computed, and multiplies their gradient by their weights.
  double weigh_rows(int64_t head, int64_t row, int64_t rows) {
    double weighted = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = (row + r) * plan_.num_tasks * args_.heads + head;
      Scalar* gradient = args_.gradient == nullptr
                             ? nullptr
                             : args_.gradient + (head * args_.rows + row + r) * plan_.num_logits;
      for (int64_t t = 0; t < plan_.num_tasks; ++t) {
        const Scalar loss = row_losses_[r * pitch_ + t] / std::max(counts_[static_cast<std::size_t>(t)], 1);
        args_.row_losses[at + t * args_.heads] = loss;
        if (targets_[r * pitch_ + t] < 0) continue;  // all is zero, whatever the weight
        const Scalar weight = args_.row_weights[at + t * args_.heads];
        weighted += static_cast<double>(weight) * loss;
        if (gradient != nullptr)
          for (int64_t c = plan_.offsets[t]; c < plan_.offsets[t + 1]; ++c) gradient[c] *= weight;
      }
    }
    return weighted;
  }

  void record_rows(int64_t row, int64_t rows, const uint8_t* refused) {
    for (int64_t r = 0; r < rows; ++r) {
      const float* gold = gold_.get() + r * pitch_;
      const int64_t held = duplicates_.place(row + r);
      if (held >= 0) {
        std::copy_n(gold, pitch_, held_gold_ + held * pitch_);
        held_refused_[held] = refused[r];
      } else if (refused[r]) {
        ++num_rejected_;
      } else {
        record_one(args_.map, plan_.num_tasks, args_.sample_ids[row + r], gold);
      }
    }
  }

  const ForwardArgs<Scalar>& args_;
  const PlanView& plan_;
  const std::vector<int32_t>& counts_;
  const Scalar* scale_;  // [heads, pitch]
  const Duplicates& duplicates_;
  float* held_gold_;
  uint8_t* held_refused_;
  const int64_t pitch_, rows_at_once_;
  std::unique_ptr<int32_t[]> targets_;
  std::unique_ptr<float[]> gold_;
  std::unique_ptr<Scalar[]> row_losses_;
  std::unique_ptr<float[]> strip_;
  int64_t num_rejected_ = 0;
};

template <class Scalar>
Outcome check(const ForwardArgs<Scalar>& args, const PlanView& plan, std::vector<int32_t>& counts) {
  Outcome outcome = count_labels(plan, args.targets, args.rows, args.num_threads, counts);
  if (outcome.problem == Problem::none && args.map.words != nullptr)
    outcome = check_ids(args.sample_ids, args.rows, args.map.num_samples);
  if (outcome.problem == Problem::none && args.map.sample_counts != nullptr)
    outcome = check_complete(plan, args.targets, args.rows, counts);
  return outcome;
}

// Rows whose id stands more than once in the batch, one after the other in the order of the batch.
template <class Scalar>
int64_t record_held(const ForwardArgs<Scalar>& args, const PlanView& plan, const Duplicates& duplicates,
                    const float* gold, const uint8_t* refused) {
  int64_t num_rejected = 0;
  for (int64_t i = 0; i < duplicates.size(); ++i) {
    if (refused[i])
      ++num_rejected;
    else
      record_one(args.map, plan.num_tasks, args.sample_ids[duplicates.row(i)],
                 gold + i * (plan.num_tasks + kTasksOfPadding));
  }
  return num_rejected;
}

// What each block of rows of each head has summed up.
template <class Scalar>
struct Sums {
  Sums(int64_t blocks, int64_t row_pitch)
      : pitch(row_pitch),
        losses(new Scalar[static_cast<std::size_t>(blocks * row_pitch)]),
        weighted(static_cast<std::size_t>(blocks)) {}

  int64_t pitch;
  std::unique_ptr<Scalar[]> losses;  // [heads, blocks, pitch]
  std::vector<double> weighted;      // [heads, blocks]
};

// [heads, pitch] what a task's slopes are multiplied by: its weight over its number of labels.
template <class Scalar>
std::vector<Scalar> scales(const ForwardArgs<Scalar>& args, const std::vector<int32_t>& counts,
                           int64_t pitch) {
  std::vector<Scalar> scale(static_cast<std::size_t>(args.heads * pitch), Scalar(0));
  for (int64_t head = 0; head < args.heads; ++head)
    for (int64_t t = 0; t < static_cast<int64_t>(counts.size()); ++t)
      scale[static_cast<std::size_t>(head * pitch + t)] =
          (args.task_weights == nullptr ? Scalar(1) : args.task_weights[t * args.heads + head]) /
          std::max(counts[static_cast<std::size_t>(t)], 1);
  return scale;
}

// Losses and total from the blocks' sums, added up in one order.
template <class Scalar>
void reduce(const ForwardArgs<Scalar>& args, const std::vector<int32_t>& counts, const Sums<Scalar>& sums,
            int64_t num_blocks) {
  double total = 0;
  for (int64_t t = 0; t < static_cast<int64_t>(counts.size()); ++t) {
    for (int64_t head = 0; head < args.heads; ++head) {
      const Scalar* blocks = sums.losses.get() + head * num_blocks * sums.pitch + t;
      double sum = 0;
      for (int64_t b = 0; b < num_blocks; ++b) sum += blocks[b * sums.pitch];
      const int64_t at = t * args.heads + head;
      args.losses[at] = static_cast<Scalar>(sum / std::max(counts[static_cast<std::size_t>(t)], 1));
      if (args.task_weights != nullptr) total += static_cast<double>(args.task_weights[at]) * args.losses[at];
    }
  }
  for (double weighted : sums.weighted) total += weighted;
  if (args.total != nullptr) *args.total = static_cast<Scalar>(total);
}

}  // namespace

LayoutPlan::LayoutPlan(const std::vector<int64_t>& num_classes, std::vector<double> pos_weight,
                       std::vector<double> class_weight)
    : exact_pos_weight_(std::move(pos_weight)),
      exact_class_weight_(std::move(class_weight)),
      pos_weight_(exact_pos_weight_.begin(), exact_pos_weight_.end()),
      class_weight_(exact_class_weight_.begin(), exact_class_weight_.end()),
      strip_columns_(kStripColumns) {
  offsets_.push_back(0);
  for (int64_t classes : num_classes) {
    if (classes < 1 || classes > INT32_MAX) throw std::invalid_argument("a task has at least one logit");
    offsets_.push_back(offsets_.back() + classes);
    labels_.push_back(static_cast<int32_t>(std::max<int64_t>(classes, 2)));
    strip_columns_ = std::max(strip_columns_, classes);
  }
  const int64_t num_tasks = static_cast<int64_t>(labels_.size());
  for (int64_t first = 0; first < num_tasks;) {
    const int64_t classes = num_classes[static_cast<std::size_t>(first)];
    int64_t end = first + 1;
    while (end < num_tasks && num_classes[static_cast<std::size_t>(end)] == classes) ++end;
    const bool in_rows = classes <= 2 && end - first >= kFewestTasksInRows;
    const SegmentKind kind = !in_rows       ? SegmentKind::lanes
                             : classes == 1 ? SegmentKind::rows_one
                                            : SegmentKind::rows_two;
    if (kind == SegmentKind::lanes && !segments_.empty() && segments_.back().kind == SegmentKind::lanes)
      segments_.back().end_task = end;
    else
      segments_.push_back({kind, first, end});
    first = end;
  }
}

PlanView LayoutPlan::view() const {
  return {static_cast<int64_t>(labels_.size()),
          offsets_.back(),
          offsets_.data(),
          labels_.data(),
          pos_weight_.empty() ? nullptr : pos_weight_.data(),
          class_weight_.empty() ? nullptr : class_weight_.data(),
          exact_pos_weight_.empty() ? nullptr : exact_pos_weight_.data(),
          exact_class_weight_.empty() ? nullptr : exact_class_weight_.data(),
          segments_.data(),
          static_cast<int64_t>(segments_.size()),
          strip_columns_};
}

bool LayoutPlan::has_lanes() const {
  return std::any_of(segments_.begin(), segments_.end(),
                     [](const Segment& s) { return s.kind == SegmentKind::lanes; });
}

template <class Scalar>
Outcome forward(const ForwardArgs<Scalar>& args) {
  const PlanView plan = args.layout->view();
  const int64_t num_tasks = plan.num_tasks, pitch = num_tasks + kTasksOfPadding;
  std::fill_n(args.losses, num_tasks * args.heads, Scalar(0));
  if (args.total != nullptr) *args.total = 0;
  if (args.rows == 0) return {};

  std::vector<int32_t> counts;
  const Outcome outcome = check(args, plan, counts);
  if (outcome.problem != Problem::none) return outcome;

  const bool recording = args.map.words != nullptr;
  const Duplicates duplicates(args.sample_ids, recording ? args.rows : 0);
  std::unique_ptr<float[]> held_gold(new float[static_cast<std::size_t>(duplicates.size() * pitch)]);
  std::unique_ptr<uint8_t[]> held_refused(new uint8_t[static_cast<std::size_t>(duplicates.size())]);

  const std::vector<Scalar> scale = scales(args, counts, pitch);
  const int64_t num_blocks = (args.rows + kRowsPerBlock - 1) / kRowsPerBlock;
  Sums<Scalar> sums(args.heads * num_blocks, pitch);
  const int threads =
      threads_for(args.heads * args.rows * plan.num_logits, args.heads * num_blocks, args.num_threads);
  int64_t num_rejected = 0;
#pragma omp parallel num_threads(threads) reduction(+ : num_rejected)
  {
    Worker<Scalar> worker(args, plan, counts, scale.data(), duplicates, held_gold.get(), held_refused.get());
#pragma omp for schedule(static)
    for (int64_t i = 0; i < args.heads * num_blocks; ++i) {
      const int64_t head = i / num_blocks, first = i % num_blocks * kRowsPerBlock;
      sums.weighted[static_cast<std::size_t>(i)] = worker.block(
          head, first, std::min(first + kRowsPerBlock, args.rows), sums.losses.get() + i * pitch);
    }
    num_rejected += worker.num_rejected();
  }
  if (recording) {
    num_rejected += record_held(args, plan, duplicates, held_gold.get(), held_refused.get());
    *args.map.num_rejected += num_rejected;
  }
  reduce(args, counts, sums, num_blocks);
  return {};
}

template <class Scalar>
void scale_gradient(const LayoutPlan& layout, const Scalar* gradient, const Scalar* upstream, Scalar* out,
                    int64_t rows, int num_threads) {
  const PlanView plan = layout.view();
  const int64_t columns = plan.num_logits;
  std::vector<Scalar> factors(static_cast<std::size_t>(columns));
  for (int64_t t = 0; t < plan.num_tasks; ++t)
    std::fill(factors.begin() + plan.offsets[t], factors.begin() + plan.offsets[t + 1], upstream[t]);
  const int threads = threads_for(rows * columns / 2, rows, num_threads);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int chunk = 0; chunk < threads; ++chunk) {
    const int64_t first = rows * chunk / threads, count = rows * (chunk + 1) / threads - first;
    scale(gradient + first * columns, factors.data(), out + first * columns, count, columns);
  }
}

Outcome record(const MapState& map, int64_t num_tasks, const float* signed_probabilities,
               const int64_t* sample_ids, int64_t rows) {
  const Outcome outcome = check_ids(sample_ids, rows, map.num_samples);
  if (outcome.problem != Problem::none) return outcome;
  std::vector<float> gold(static_cast<std::size_t>(num_tasks + kTasksOfPadding), 0.0f);
  for (int64_t row = 0; row < rows; ++row) {
    std::copy_n(signed_probabilities + row * num_tasks, num_tasks, gold.begin());
    record_one(map, num_tasks, sample_ids[row], gold.data());
  }
  return {};
}

template Outcome forward<float>(const ForwardArgs<float>&);
template Outcome forward<double>(const ForwardArgs<double>&);
template void scale_gradient<float>(const LayoutPlan&, const float*, const float*, float*, int64_t, int);
template void scale_gradient<double>(const LayoutPlan&, const double*, const double*, double*, int64_t, int);

}  // namespace pymtg
