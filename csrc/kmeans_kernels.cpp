#include "kmeans_kernels.hpp"

namespace pymtg {
namespace PYMTG_ISA_NAMESPACE {

using Index = std::int64_t;

void add_row(double* sums, const double* row, double factor, Index n) {
  for (Index i = 0; i < n; ++i) sums[i] += factor * row[i];
}

void add_float_row(double* sums, const float* row, double factor, Index n) {
  for (Index i = 0; i < n; ++i) sums[i] += factor * static_cast<double>(row[i]);
}

void add_four_rows(double* sums, const double* rows, Index stride, const double* factors, Index n) {
  const double a = factors[0], b = factors[1], c = factors[2], d = factors[3];
  const double* second = rows + stride;
  const double* third = rows + 2 * stride;
  const double* fourth = rows + 3 * stride;
  for (Index i = 0; i < n; ++i) sums[i] += (a * rows[i] + b * second[i]) + (c * third[i] + d * fourth[i]);
}

double sum_of_minima(const double* a, const double* b, Index n) {
  constexpr int kLanes = 16;
  double lane[kLanes] = {};
  Index i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lane[l] += a[i + l] < b[i + l] ? a[i + l] : b[i + l];
  double total = 0;
  for (; i < n; ++i) total += a[i] < b[i] ? a[i] : b[i];
  for (int l = 0; l < kLanes; ++l) total += lane[l];
  return total;
}

void nearest_clusters(const double* sums, const double* scale, const double* shift, Index clusters, Index n,
                      std::int32_t* label, double* value) {
  constexpr Index kBlock = 128;
  for (Index i0 = 0; i0 < n; i0 += kBlock) {
    const Index width = n - i0 < kBlock ? n - i0 : kBlock;
    double best[kBlock], at[kBlock];  // `at` is a double so that both arrays blend under one mask
    for (Index i = 0; i < width; ++i) {
      best[i] = sums[i0 + i] * scale[0] - shift[0];
      at[i] = 0;
    }
    for (Index k = 1; k < clusters; ++k) {
      const double* row = sums + k * n + i0;
      const double factor = scale[k], minus = shift[k], number = static_cast<double>(k);
      for (Index i = 0; i < width; ++i) {
        const double candidate = row[i] * factor - minus;
        const bool closer = candidate < best[i];
        best[i] = closer ? candidate : best[i];
        at[i] = closer ? number : at[i];
      }
    }
    for (Index i = 0; i < width; ++i) {
      label[i0 + i] = static_cast<std::int32_t>(at[i]);
      value[i0 + i] = best[i];
    }
  }
}

}  // namespace PYMTG_ISA_NAMESPACE
}  // namespace pymtg
