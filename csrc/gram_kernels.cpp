#include "gram_kernels.hpp"

#include "doubles.hpp"

namespace pymtg {
namespace PYMTG_ISA_NAMESPACE {
namespace {

using Index = std::int64_t;

// The register tile: kRows broadcasts by 3 vectors of columns.
constexpr int kRows = kLanes == 8 ? 8 : 4;

// Columns [c, c + 3 * kLanes) of the tile for kRows rows; a vector never crosses a panel, as kLanes
// divides 8.
inline void register_tile(const double* rows, const double* columns, Index panel_stride, Index depth, int c,
                          double* tile) {
  const double* source[3];
  for (int v = 0; v < 3; ++v) {
    const int column = c + v * kLanes;
    source[v] = columns + (column / kPanel) * panel_stride + column % kPanel;
  }
  Vector sum[kRows][3] = {};
  for (Index k = 0; k < depth; ++k) {
    const Vector x0 = load(source[0] + k * kPanel);
    const Vector x1 = load(source[1] + k * kPanel);
    const Vector x2 = load(source[2] + k * kPanel);
    const double* y = rows + k * kPanel;
#if defined(__GNUC__)
#pragma GCC unroll 8
#endif
    for (int r = 0; r < kRows; ++r) {
      sum[r][0] += x0 * y[r];
      sum[r][1] += x1 * y[r];
      sum[r][2] += x2 * y[r];
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < 3; ++v) at(tile + r * kTileColumns + c + v * kLanes) = sum[r][v];
}

// Features as rows: a few features at a time, so that every panel is written in stretches longer than a cache
// line.
template <typename Scalar>
void pack_feature_rows(const Slab& slab, Index first, Index count, Index origin, Index panel_stride,
                       double* packed) {
  constexpr Index kAtOnce = 8;
  const Scalar* data = static_cast<const Scalar*>(slab.data);
  const Index n = slab.points;
  for (Index f0 = first; f0 < first + count; f0 += kAtOnce) {
    const Index rows = first + count - f0 < kAtOnce ? first + count - f0 : kAtOnce;
    double mean[kAtOnce];
    for (Index r = 0; r < rows; ++r) {
      const Scalar* x = data + (f0 + r) * slab.feature_stride;
      double lane[16] = {};
      Index p = 0;
      for (; p + 16 <= n; p += 16)
        for (int l = 0; l < 16; ++l) lane[l] += static_cast<double>(x[p + l]);
      double total = 0;
      for (; p < n; ++p) total += static_cast<double>(x[p]);
      for (int l = 0; l < 16; ++l) total += lane[l];
      mean[r] = total / static_cast<double>(n);
    }
    for (Index p = 0; p < n; p += kPanel) {
      double* out = packed + (p / kPanel) * panel_stride + (f0 - origin) * kPanel;
      for (Index r = 0; r < rows; ++r, out += kPanel) {
        const Scalar* x = data + (f0 + r) * slab.feature_stride + p;
        if (p + kPanel <= n) {
          for (int l = 0; l < kPanel; ++l) out[l] = static_cast<double>(x[l]) - mean[r];
        } else {
          for (int l = 0; l < kPanel; ++l) out[l] = p + l < n ? static_cast<double>(x[l]) - mean[r] : 0.0;
        }
      }
    }
  }
}

// Points as rows: the means of a stretch of columns first, then 8 x 8 blocks turned over.
template <typename Scalar>
void pack_point_rows(const Slab& slab, Index first, Index count, Index origin, Index panel_stride,
                     double* packed) {
  constexpr Index kAtOnce = 256;
  const Scalar* data = static_cast<const Scalar*>(slab.data);
  const Index n = slab.points;
  for (Index f0 = first; f0 < first + count; f0 += kAtOnce) {
    const Index width = first + count - f0 < kAtOnce ? first + count - f0 : kAtOnce;
    double mean[kAtOnce] = {};
    for (Index p = 0; p < n; ++p) {
      const Scalar* x = data + p * slab.point_stride + f0;
      for (Index f = 0; f < width; ++f) mean[f] += static_cast<double>(x[f]);
    }
    for (Index f = 0; f < width; ++f) mean[f] /= static_cast<double>(n);
    for (Index p = 0; p < n; p += kPanel) {
      double* out = packed + (p / kPanel) * panel_stride + (f0 - origin) * kPanel;
      const Index lanes = n - p < kPanel ? n - p : kPanel;
      const Scalar* x = data + p * slab.point_stride + f0;
      Index f = 0;
      if (lanes == kPanel) {
        for (; f + 8 <= width; f += 8) {
          double block[8][8];
          for (int l = 0; l < 8; ++l)
            for (int c = 0; c < 8; ++c)
              block[l][c] = static_cast<double>(x[l * slab.point_stride + f + c]) - mean[f + c];
          for (int c = 0; c < 8; ++c)
            for (int l = 0; l < 8; ++l) out[(f + c) * kPanel + l] = block[l][c];
        }
      }
      for (; f < width; ++f)
        for (Index l = 0; l < kPanel; ++l)
          out[f * kPanel + l] = l < lanes ? static_cast<double>(x[l * slab.point_stride + f]) - mean[f] : 0.0;
    }
  }
}

}  // namespace

void gram_pack(const Slab& slab, Index first, Index count, Index origin, Index panel_stride, double* packed) {
  if (!slab.points_as_rows) {
    if (slab.is_double)
      pack_feature_rows<double>(slab, first, count, origin, panel_stride, packed);
    else
      pack_feature_rows<float>(slab, first, count, origin, panel_stride, packed);
  } else {
    if (slab.is_double)
      pack_point_rows<double>(slab, first, count, origin, panel_stride, packed);
    else
      pack_point_rows<float>(slab, first, count, origin, panel_stride, packed);
  }
}

void gram_tile(const double* rows, const double* columns, Index panel_stride, Index depth, double* tile) {
  for (int r = 0; r < kPanel; r += kRows)
    for (int c = 0; c < kTileColumns; c += 3 * kLanes)
      register_tile(rows + r, columns, panel_stride, depth, c, tile + r * kTileColumns);
}

}  // namespace PYMTG_ISA_NAMESPACE
}  // namespace pymtg
