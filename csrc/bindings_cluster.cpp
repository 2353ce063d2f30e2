// Clustering: arrays are checked for dtype, layout and size here, for meaning by the Python wrappers.
#include <pybind11/numpy.h>

#include <stdexcept>
#include <string>

#include "bindings.hpp"
#include "fuzzy.hpp"
#include "gram.hpp"
#include "kmeans.hpp"
#include "points.hpp"

namespace py = pybind11;
using Matrix = py::array_t<double, py::array::c_style>;
using Labels = py::array_t<std::int32_t, py::array::c_style>;
using Index = std::int64_t;

namespace {

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

Index square(const Matrix& matrix) {
  require(matrix.ndim() == 2 && matrix.shape(0) == matrix.shape(1), "matrix must be square");
  return matrix.shape(0);
}

void check_labels(const Labels& labels, Index n, Index clusters) {
  require(labels.ndim() == 1 && labels.shape(0) == n, "labels must have one entry per point");
  for (Index i = 0; i < n; ++i)
    require(labels.data()[i] >= 0 && labels.data()[i] < clusters,
            "labels must be below the number of clusters");
}

template <typename Scalar>
void add_block(Matrix& gram, const py::array_t<Scalar>& block, bool points_as_rows, int threads) {
  const Index n = square(gram);
  require(block.ndim() == 2, "block must be 2-D");
  const int point_axis = points_as_rows ? 0 : 1;
  const auto width = static_cast<Index>(sizeof(Scalar));
  require(block.shape(point_axis) == n, "block must have as many points as the Gram matrix");
  require(block.shape(1) <= 1 || block.strides(1) == width, "the rows of block must be contiguous");
  require(block.strides(0) % width == 0, "block must be aligned");
  const Index row_stride = block.strides(0) / width;
  const pymtg::Slab slab{
      block.data(),  sizeof(Scalar) == 8, points_as_rows ? 1 : row_stride, points_as_rows ? row_stride : 1, n,
      points_as_rows};
  double* out = gram.mutable_data();
  py::gil_scoped_release release;
  pymtg::gram_add(slab, block.shape(1 - point_axis), out, threads);
}

py::tuple kmeans(const Matrix& distances, Index clusters, Index starts, Index max_iter, std::uint64_t seed,
                 bool local_search, int threads) {
  const Index n = square(distances);
  require(clusters >= 1 && clusters <= n && starts >= 1 && max_iter >= 1, "sizes out of range");
  Labels labels(n);
  std::int32_t* out = labels.mutable_data();
  const double* in = distances.data();
  pymtg::KMeansSummary summary;
  {
    py::gil_scoped_release release;
    summary = pymtg::kmeans_distances(in, n, {clusters, starts, max_iter, seed, local_search}, out, threads);
  }
  return py::make_tuple(labels, summary.inertia, summary.iterations, summary.converged);
}

py::tuple fuzzy(const Matrix& distances, const Labels& labels, Index clusters, double fuzzifier, double tol,
                Index max_iter, int threads) {
  const Index n = square(distances);
  check_labels(labels, n, clusters);
  Matrix memberships({n, clusters}), squared({n, clusters}), coefficients({clusters, n});
  double *u = memberships.mutable_data(), *d = squared.mutable_data(), *a = coefficients.mutable_data();
  const double* in = distances.data();
  const std::int32_t* start = labels.data();
  pymtg::FuzzySummary summary;
  {
    py::gil_scoped_release release;
    summary = pymtg::fuzzy_distances(in, n, start, clusters, fuzzifier, tol, max_iter, u, d, a, threads);
  }
  return py::make_tuple(memberships, squared, coefficients, summary.objective, summary.iterations,
                        summary.converged);
}

template <typename Scalar>
Matrix combine(const py::array_t<Scalar, py::array::c_style>& points, const Matrix& coefficients,
               int threads) {
  require(points.ndim() == 2 && coefficients.ndim() == 2 && coefficients.shape(1) == points.shape(0),
          "coefficients must have one column per point");
  const Index n = points.shape(0), dims = points.shape(1), combinations = coefficients.shape(0);
  Matrix result({combinations, dims});
  double* out = result.mutable_data();
  const Scalar* in = points.data();
  const double* factors = coefficients.data();
  py::gil_scoped_release release;
  pymtg::combine_points(in, sizeof(Scalar) == 8, n, dims, factors, combinations, out, threads);
  return result;
}

// Centred on the means of the coordinates.
struct CenteredPoints {
  template <typename Scalar>
  explicit CenteredPoints(const py::array_t<Scalar, py::array::c_style>& array) {
    require(array.ndim() == 2 && array.shape(0) >= 1 && array.shape(1) >= 1, "points must be [n, dims]");
    offset.resize(array.shape(1));
    view = {array.data(), sizeof(Scalar) == 8, array.shape(0), array.shape(1), offset.data()};
  }
  void center(int threads) { pymtg::coordinate_means(view, offset.data(), threads); }
  std::vector<double> to_offset(const Matrix& centers) const {
    require(centers.ndim() == 2 && centers.shape(1) == view.dims, "centers must be [clusters, dims]");
    std::vector<double> result(centers.data(), centers.data() + centers.size());
    for (std::size_t at = 0; at < result.size(); ++at) result[at] -= offset[at % offset.size()];
    return result;
  }
  Matrix from_offset(const std::vector<double>& centers) const {
    Matrix result({static_cast<Index>(centers.size()) / view.dims, view.dims});
    for (std::size_t at = 0; at < centers.size(); ++at)
      result.mutable_data()[at] = centers[at] + offset[at % offset.size()];
    return result;
  }
  std::vector<double> offset;
  pymtg::Points view;
};

template <typename Scalar>
py::tuple lloyd(const py::array_t<Scalar, py::array::c_style>& array, Index clusters, Index starts,
                Index max_iter, double tol, std::uint64_t seed, bool grid, int threads) {
  CenteredPoints points(array);
  require(clusters >= 1 && starts >= 1 && max_iter >= 1, "sizes out of range");
  require(!grid || points.view.dims == 2, "the grid needs points in the plane");
  require(points.view.n < INT32_MAX, "more points than 32-bit numbers");
  Labels labels(points.view.n);
  std::int32_t* out = labels.mutable_data();
  std::vector<double> centers;
  pymtg::LloydSummary summary;
  {
    py::gil_scoped_release release;
    points.center(threads);
    summary = pymtg::kmeans_points(points.view, {clusters, starts, max_iter, tol, seed, grid}, centers, out,
                                   threads);
  }
  return py::make_tuple(points.from_offset(centers), labels, summary.inertia, summary.iterations,
                        summary.converged);
}

template <typename Scalar>
py::tuple fuzzy_lloyd(const py::array_t<Scalar, py::array::c_style>& array, const Matrix& start,
                      double fuzzifier, double tol, Index max_iter, int threads) {
  CenteredPoints points(array);
  points.center(threads);
  std::vector<double> centers = points.to_offset(start);
  Matrix memberships({points.view.n, start.shape(0)});
  double* out = memberships.mutable_data();
  pymtg::FuzzyPointsSummary summary;
  {
    py::gil_scoped_release release;
    summary = pymtg::fuzzy_points(points.view, fuzzifier, tol, max_iter, centers, out, threads);
  }
  return py::make_tuple(points.from_offset(centers), memberships, summary.objective, summary.iterations,
                        summary.converged);
}

template <typename Scalar>
Matrix center_distances(const py::array_t<Scalar, py::array::c_style>& array, const Matrix& centers,
                        int threads) {
  const CenteredPoints points(array);
  const std::vector<double> at = points.to_offset(centers);
  Matrix result({points.view.n, static_cast<Index>(centers.shape(0))});
  double* out = result.mutable_data();
  py::gil_scoped_release release;
  pymtg::distances_to_centers(points.view, at.data(), centers.shape(0), out, threads);
  return result;
}

template <typename Scalar>
void register_points(py::module_& m) {
  using py::arg;
  m.def("lloyd_points", &lloyd<Scalar>, arg("points").noconvert(), arg("clusters"), arg("starts"),
        arg("max_iter"), arg("tol"), arg("seed"), arg("grid"), arg("num_threads"));
  m.def("fuzzy_points", &fuzzy_lloyd<Scalar>, arg("points").noconvert(), arg("centers").noconvert(),
        arg("fuzzifier"), arg("tol"), arg("max_iter"), arg("num_threads"));
  m.def("center_distances", &center_distances<Scalar>, arg("points").noconvert(), arg("centers").noconvert(),
        arg("num_threads"));
}

void register_gram(py::module_& m) {
  using py::arg;
  m.def("gram_add", &add_block<float>, arg("gram").noconvert(), arg("block").noconvert(),
        arg("points_as_rows"), arg("num_threads"));
  m.def("gram_add", &add_block<double>, arg("gram").noconvert(), arg("block").noconvert(),
        arg("points_as_rows"), arg("num_threads"));
  m.def(
      "squared_distances",
      [](const Matrix& gram, int threads) {
        const Index n = square(gram);
        Matrix result({n, n});
        double* out = result.mutable_data();
        const double* in = gram.data();
        py::gil_scoped_release release;
        pymtg::squared_distances(in, n, out, threads);
        return result;
      },
      arg("gram").noconvert(), arg("num_threads"));
  m.def(
      "distinct_points",
      [](const Matrix& distances) {
        const Index n = square(distances);
        Labels first(n);
        const Index count = pymtg::distinct_points(distances.data(), n, first.mutable_data());
        return py::make_tuple(count, first);
      },
      arg("distances").noconvert());
}

void register_distances(py::module_& m) {
  using py::arg;
  m.def("kmeans_distances", &kmeans, arg("distances").noconvert(), arg("clusters"), arg("starts"),
        arg("max_iter"), arg("seed"), arg("local_search"), arg("num_threads"));
  m.def("fuzzy_distances", &fuzzy, arg("distances").noconvert(), arg("labels").noconvert(), arg("clusters"),
        arg("fuzzifier"), arg("tol"), arg("max_iter"), arg("num_threads"));
  m.def(
      "centroid_distances",
      [](const Matrix& distances, const Labels& labels, Index clusters) {
        const Index n = square(distances);
        check_labels(labels, n, clusters);
        Matrix result({n, clusters});
        pymtg::centroid_distances(distances.data(), n, labels.data(), clusters, result.mutable_data());
        return result;
      },
      arg("distances").noconvert(), arg("labels").noconvert(), arg("clusters"));
  m.def("combine_points", &combine<float>, arg("points").noconvert(), arg("coefficients").noconvert(),
        arg("num_threads"));
  m.def("combine_points", &combine<double>, arg("points").noconvert(), arg("coefficients").noconvert(),
        arg("num_threads"));
  m.def(
      "silhouette",
      [](const Matrix& distances, const Labels& labels, Index clusters) {
        const Index n = square(distances);
        check_labels(labels, n, clusters);
        return pymtg::silhouette(distances.data(), n, labels.data(), clusters);
      },
      arg("distances").noconvert(), arg("labels").noconvert(), arg("clusters"));
  m.def(
      "fuzzify",
      [](const Matrix& squared, double fuzzifier, int threads) {
        require(squared.ndim() == 2 && squared.shape(1) >= 1, "squared must be 2-D");
        Matrix result({squared.shape(0), squared.shape(1)});
        double* out = result.mutable_data();
        const double* in = squared.data();
        py::gil_scoped_release release;
        pymtg::fuzzify(in, squared.shape(0), squared.shape(1), fuzzifier, out, threads);
        return result;
      },
      arg("squared").noconvert(), arg("fuzzifier"), arg("num_threads"));
}

}  // namespace

void register_cluster(py::module_& m) {
  register_gram(m);
  register_distances(m);
  register_points<float>(m);
  register_points<double>(m);
}
