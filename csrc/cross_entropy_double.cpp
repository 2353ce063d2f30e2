#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cross_entropy.hpp"

namespace pymtg {
namespace {

struct TaskResult {
  double loss = 0, gold = 0;
  bool right = false;
};

// Logistic loss of the logit x; slope is d loss / d x. Conventions as in the vector code.
TaskResult binary_task(double x, bool positive, double& slope) {
  const double z = positive ? x : -x;
  const double e = std::exp(-std::fabs(x)), larger = 1 / (1 + e), smaller = e * larger;
  const bool agrees = z >= 0;
  const double q = agrees ? smaller : larger;
  slope = positive ? -q : q;
  const double linear = (positive ? 0.0 : 1.0) * x - (x < 0 ? x : 0.0);
  return {linear + std::log1p(e), agrees ? larger : smaller, (x > 0) == positive};
}

TaskResult softmax_task(const double* x, int64_t num_classes, int64_t y, double* probabilities) {
  double top = x[0];
  int64_t best = 0;
  for (int64_t c = 1; c < num_classes; ++c)
    if (x[c] > top || std::isnan(x[c])) top = x[c], best = c;
  double total = 0;
  for (int64_t first = 0; first < num_classes; first += kClassesPerSum) {
    double part = 0;
    for (int64_t c = first; c < std::min(first + kClassesPerSum, num_classes); ++c)
      part += probabilities[c] = std::exp(x[c] - top);
    total += part;
  }
  for (int64_t c = 0; c < num_classes; ++c) probabilities[c] /= total;
  return {std::log(total) - (x[y] - top), std::exp(x[y] - top) / total, best == y};
}

void one_task(const RowsArgs<double>& a, int64_t row, int64_t task, std::vector<double>& scratch) {
  const PlanView& plan = a.plan;
  const int64_t column = plan.offsets[task], num_classes = plan.offsets[task + 1] - column;
  const double* x = a.logits + row * a.row_stride + column;
  double* gradient = a.gradient == nullptr ? nullptr : a.gradient + row * plan.num_logits + column;
  float* gold = a.gold == nullptr ? nullptr : a.gold + row * a.pitch + task;
  const int32_t y = a.targets[row * a.pitch + task];
  if (y < 0) {
    if (a.row_losses != nullptr) a.row_losses[row * a.pitch + task] = 0;
    if (gradient != nullptr) std::fill_n(gradient, num_classes, 0.0);
    if (gold != nullptr) *gold = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  double weight = 1;
  if (num_classes == 1 && plan.exact_pos_weight != nullptr && y == 1) weight = plan.exact_pos_weight[task];
  if (num_classes > 1 && plan.exact_class_weight != nullptr) weight = plan.exact_class_weight[column + y];

  TaskResult result;
  if (num_classes == 1) {
    result = binary_task(x[0], y == 1, scratch[0]);
  } else {
    result = softmax_task(x, num_classes, y, scratch.data());
    scratch[static_cast<std::size_t>(y)] -= 1;
  }
  a.loss_sums[task] += weight * result.loss;
  if (a.row_losses != nullptr) a.row_losses[row * a.pitch + task] = weight * result.loss;
  if (!std::isfinite(result.loss)) a.refused[row] = 1;
  if (gradient != nullptr)
    for (int64_t c = 0; c < num_classes; ++c)
      gradient[c] = scratch[static_cast<std::size_t>(c)] * weight * a.scale[task];
  if (gold != nullptr) *gold = std::copysign(static_cast<float>(result.gold), result.right ? -1.0f : 1.0f);
}

}  // namespace

void compute_rows(const RowsArgs<double>& a) {
  std::vector<double> scratch(static_cast<std::size_t>(a.plan.strip_columns));
  for (int64_t row = 0; row < a.rows; ++row)
    for (int64_t task = 0; task < a.plan.num_tasks; ++task) one_task(a, row, task, scratch);
}

}  // namespace pymtg
