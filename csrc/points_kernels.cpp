#include "points_kernels.hpp"

#include "doubles.hpp"

namespace pymtg {
namespace PYMTG_ISA_NAMESPACE {
namespace {

using Index = std::int64_t;

constexpr Index kGroup = 16;     // points side by side in vectors
constexpr Index kStretch = 128;  // coordinates packed at a time
constexpr int kVectors = kGroup / kLanes;
constexpr int kHalf = kVectors > 2 ? 2 : kVectors;  // vectors of points whose sums stay in registers

// packed[d][16]: coordinates [d0, d0 + width) of a group of points; missing points repeat the last one.
template <typename Scalar>
void pack(const Points& points, Index first, Index lanes, Index d0, Index width, double* packed) {
  const Scalar* data = static_cast<const Scalar*>(points.data);
  for (Index l = 0; l < kGroup; ++l) {
    const Scalar* x = data + (first + (l < lanes ? l : lanes - 1)) * points.dims + d0;
    for (Index d = 0; d < width; ++d)
      packed[d * kGroup + l] = static_cast<double>(x[d]) - points.offset[d0 + d];
  }
}

// sums[c][16] += squared differences over `width` coordinates, for kCenters centres `dims` doubles apart.
template <int kCenters>
void add_squares(const double* packed, Index width, const double* centers, Index dims, double* sums) {
  for (int v0 = 0; v0 < kVectors; v0 += kHalf) {
    Vector total[kCenters][kHalf];
    for (int c = 0; c < kCenters; ++c)
      for (int v = 0; v < kHalf; ++v) total[c][v] = load(sums + c * kGroup + (v0 + v) * kLanes);
    for (Index d = 0; d < width; ++d) {
      for (int v = 0; v < kHalf; ++v) {
        const Vector x = load(packed + d * kGroup + (v0 + v) * kLanes);
        for (int c = 0; c < kCenters; ++c) {
          const Vector difference = x - centers[c * dims + d];
          total[c][v] += difference * difference;
        }
      }
    }
    for (int c = 0; c < kCenters; ++c)
      for (int v = 0; v < kHalf; ++v) at(sums + c * kGroup + (v0 + v) * kLanes) = total[c][v];
  }
}

// sums[number][16]: squared distances of one group of points to every centre.
void group_distances(const Points& points, Index first, Index lanes, const double* centers, Index number,
                     double* sums) {
  double packed[kStretch * kGroup];
  for (Index i = 0; i < number * kGroup; ++i) sums[i] = 0;
  for (Index d0 = 0; d0 < points.dims; d0 += kStretch) {
    const Index width = points.dims - d0 < kStretch ? points.dims - d0 : kStretch;
    if (points.is_double)
      pack<double>(points, first, lanes, d0, width, packed);
    else
      pack<float>(points, first, lanes, d0, width, packed);
    Index k = 0;
    for (; k + 4 <= number; k += 4)
      add_squares<4>(packed, width, centers + k * points.dims + d0, points.dims, sums + k * kGroup);
    for (; k < number; ++k)
      add_squares<1>(packed, width, centers + k * points.dims + d0, points.dims, sums + k * kGroup);
  }
}

template <typename Scalar>
void add_point(const Points& points, Index i, double* sum) {
  const Scalar* x = static_cast<const Scalar*>(points.data) + i * points.dims;
  for (Index d = 0; d < points.dims; ++d) sum[d] += static_cast<double>(x[d]) - points.offset[d];
}

}  // namespace

void point_distances(const Points& points, Index first, Index count, const double* centers, Index number,
                     double* scratch, double* out) {
  for (Index i0 = 0; i0 < count; i0 += kGroup) {
    const Index lanes = count - i0 < kGroup ? count - i0 : kGroup;
    group_distances(points, first + i0, lanes, centers, number, scratch);
    for (Index l = 0; l < lanes; ++l)
      for (Index k = 0; k < number; ++k) out[(i0 + l) * number + k] = scratch[k * kGroup + l];
  }
}

Index assign_points(const Points& points, Index first, Index count, const double* centers, Index number,
                    double* scratch, std::int32_t* label, double* nearest, double* sums, double* count_of) {
  Index changed = 0;
  for (Index i0 = 0; i0 < count; i0 += kGroup) {
    const Index lanes = count - i0 < kGroup ? count - i0 : kGroup;
    group_distances(points, first + i0, lanes, centers, number, scratch);
    double best[kGroup], number_of[kGroup];
    for (Index l = 0; l < kGroup; ++l) {
      best[l] = scratch[l];
      number_of[l] = 0;
    }
    for (Index k = 1; k < number; ++k) {
      const double name = static_cast<double>(k);
      for (Index l = 0; l < kGroup; ++l) {
        const bool closer = scratch[k * kGroup + l] < best[l];
        best[l] = closer ? scratch[k * kGroup + l] : best[l];
        number_of[l] = closer ? name : number_of[l];
      }
    }
    for (Index l = 0; l < lanes; ++l) {
      const Index i = i0 + l;
      const std::int32_t k = static_cast<std::int32_t>(number_of[l]);
      changed += label[i] != k;
      label[i] = k;
      nearest[i] = best[l];
      count_of[k] += 1;
      if (points.is_double)
        add_point<double>(points, first + i, sums + k * points.dims);
      else
        add_point<float>(points, first + i, sums + k * points.dims);
    }
  }
  return changed;
}

}  // namespace PYMTG_ISA_NAMESPACE
}  // namespace pymtg
