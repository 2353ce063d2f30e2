// The hot loops behind csrc/gram.hpp, built once per instruction set.
#pragma once

#include <cstdint>

#include "isa.hpp"

namespace pymtg {

// Points are packed in panels of 8; a tile is one panel of rows by three panels of columns.
constexpr std::int64_t kPanel = 8;
constexpr std::int64_t kTileColumns = 3 * kPanel;
constexpr std::int64_t kDepth =
    256;  // features whose products are summed in registers before they join the Gram

// A slab of features in memory: value (feature f, point p) stands at data[f * feature_stride + p *
// point_stride]. points_as_rows: feature_stride is 1; else point_stride is 1.
struct Slab {
  const void* data;
  bool is_double;
  std::int64_t feature_stride, point_stride, points;
  bool points_as_rows;
};

// Centres features [first, first + count) of the slab over its points, each by its own float64 mean, and
// writes them to packed[panel][feature - origin][8], a panel being panel_stride doubles; lanes beyond the
// last point are zero.
PYMTG_DECLARE_FOR_EACH_ISA(void gram_pack(const Slab& slab, std::int64_t first, std::int64_t count,
                                          std::int64_t origin, std::int64_t panel_stride, double* packed))

// tile[8][24] = sum over `depth` features of rows[k][i] * columns[k][j]; the three column panels stand
// panel_stride doubles apart.
PYMTG_DECLARE_FOR_EACH_ISA(void gram_tile(const double* rows, const double* columns,
                                          std::int64_t panel_stride, std::int64_t depth, double* tile))

}  // namespace pymtg
