"""The clustering algorithms over the compiled core, as pure functions from arrays to a :class:`Clustering`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from pymtg import _core
from pymtg._gram import Float64Array
from pymtg.errors import InvalidArgumentError

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Int32Array = npt.NDArray[np.int32]

_SILHOUETTE_SAMPLE = 2000  # points that a silhouette is taken over where there are more


@dataclass(frozen=True)
class Options:
    """How to cluster; checked by the estimator."""

    mode: str
    fuzzifier: float
    n_init: int
    max_iter: int
    tol: float
    seed: int


@dataclass(frozen=True)
class Clustering:
    """What clustering n points into K clusters gave.

    ``found`` is below K where fewer distinct points were found: the clusters beyond are copies of the first ones.
    Centres are in the points' space (``centers`` [K, D]), or combinations of the points (``coefficients`` [K, n]).
    ``memberships`` is None where they are 0 and 1 and follow from the labels.
    """

    labels: Int32Array
    memberships: Float64Array | None
    inertia: float
    n_iter: int
    found: int
    centers: Float64Array | None = None
    coefficients: Float64Array | None = None


def one_hot(labels: Int32Array, n_clusters: int) -> Float64Array:
    """Return memberships ``[n, K]`` of 0 and 1."""
    result = np.zeros((len(labels), n_clusters))
    result[np.arange(len(labels)), labels] = 1
    return result


def largest(rows: Float64Array) -> Int32Array:
    """Return the column ``[n]`` of each row's largest entry."""
    columns: Int32Array = rows.argmax(axis=1).astype(np.int32)
    return columns


def shares(labels: Int32Array, n_clusters: int) -> Float64Array:
    """Return shares ``[tasks, K]`` of each task's points ``[tasks, P]`` by cluster; -1 stands for no point."""
    counts = np.stack([np.bincount(row[row >= 0], minlength=n_clusters) for row in labels])
    result: Float64Array = counts / counts.sum(axis=1, keepdims=True)
    return result


def fuzzify(squared: Float64Array, fuzzifier: float) -> Float64Array:
    """Return memberships ``[n, K]`` of points with the given squared distances ``[n, K]`` to the centroids."""
    return _core.fuzzify(np.ascontiguousarray(squared), fuzzifier, torch.get_num_threads())


def distances_from_gram(gram: Float64Array) -> Float64Array:
    """Return squared distances ``[n, n]`` from inner products; within rounding of zero they are zero."""
    return _core.squared_distances(np.ascontiguousarray(gram), torch.get_num_threads())


def cluster_distances(distances: Float64Array, n_clusters: int, options: Options) -> Clustering:
    """Cluster n points that are known by their squared distances ``[n, n]``."""
    distinct, first = _core.distinct_points(distances)
    found = min(n_clusters, distinct)
    threads = torch.get_num_threads()
    n_iter = 0
    if distinct <= n_clusters:
        labels = np.unique(first, return_inverse=True)[1].astype(np.int32)
        inertia = 0.0
    else:
        labels, inertia, n_iter, _ = _core.kmeans_distances(
            distances, found, options.n_init, options.max_iter, options.seed, True, threads
        )
    memberships = None
    coefficients = one_hot(labels, found).T
    coefficients /= coefficients.sum(axis=1, keepdims=True)
    squared = None
    if options.mode == "fuzzy-cmeans":
        _, squared, coefficients, inertia, n_iter, _ = _core.fuzzy_distances(
            distances, labels, found, options.fuzzifier, options.tol, options.max_iter, threads
        )
    elif options.mode == "kmeans-fuzzified":
        squared = _core.centroid_distances(distances, labels, found)
    copies = np.arange(n_clusters) % found
    coefficients = np.ascontiguousarray(coefficients[copies])
    if squared is not None:
        memberships = fuzzify(squared[:, copies], options.fuzzifier)
    if options.mode == "fuzzy-cmeans" and memberships is not None:
        labels, memberships, coefficients = _numbered(memberships, coefficients)
    return Clustering(labels, memberships, inertia, max(n_iter, 1), found, coefficients=coefficients)


def with_centers(result: Clustering, X: FloatArray) -> Clustering:
    """Return a clustering whose centres are in the space of the points ``[n, D]``."""
    assert result.coefficients is not None
    centers = _core.combine_points(X, result.coefficients, torch.get_num_threads())
    return replace(result, centers=centers, coefficients=None)


def cluster_points(X: FloatArray, n_clusters: int, options: Options, *, grid: bool) -> Clustering:
    """Cluster points ``[n, D]`` by Lloyd's algorithm on the points themselves, or on a grid in the plane."""
    threads = torch.get_num_threads()
    centers, labels, inertia, n_iter, _ = _core.lloyd_points(
        X, n_clusters, options.n_init, options.max_iter, options.tol, options.seed, grid, threads
    )
    found = len(centers)
    if options.mode == "fuzzy-cmeans":
        centers, _, inertia, n_iter, _ = _core.fuzzy_points(
            X, centers, options.fuzzifier, options.tol, options.max_iter, threads
        )
    centers = np.ascontiguousarray(centers[np.arange(n_clusters) % found])
    memberships = None
    if options.mode in ("fuzzy-cmeans", "kmeans-fuzzified"):
        memberships = fuzzify(_core.center_distances(X, centers, threads), options.fuzzifier)
    if options.mode == "fuzzy-cmeans" and memberships is not None:
        labels, memberships, centers = _numbered(memberships, centers)
    return Clustering(labels, memberships, inertia, max(n_iter, 1), found, centers=centers)


def _numbered(memberships: Float64Array, centers: Float64Array) -> tuple[Int32Array, Float64Array, Float64Array]:
    """Return labels, memberships ``[n, K]`` and centres ``[K, ...]``, clusters numbered by the first point they hold.

    Fuzzy c-means moves points between the clusters that it began at, and some may lose all theirs: they come last.
    """
    labels = memberships.argmax(axis=1)
    present, first = np.unique(labels, return_index=True)
    order = np.concatenate([present[first.argsort()], np.setdiff1d(np.arange(len(centers)), present)])
    numbers: Int32Array = order.argsort()[labels].astype(np.int32)
    return numbers, np.ascontiguousarray(memberships[:, order]), np.ascontiguousarray(centers[order])


def choose_algorithm(n: int, dims: int, algorithm: str, mode: str) -> str:
    """Return "gram", "grid" or "lloyd" for n points in `dims` dimensions.

    The Gram path costs O(n^2 D) once and O(n^2) a start, direct Lloyd O(n K D) a step: the first is for few points in
    many dimensions, where its single-point moves also find better partitions.
    """
    if algorithm == "grid" and dims != 2:
        raise InvalidArgumentError(f"algorithm 'grid' needs points in 2 dimensions; got {dims}")
    if algorithm == "grid" and mode == "fuzzy-cmeans":
        raise InvalidArgumentError("algorithm 'grid' serves hard k-means; mode 'fuzzy-cmeans' needs 'gram' or 'lloyd'")
    if algorithm != "auto":
        return algorithm
    if n <= 512 or (n <= 6000 and 4 * dims >= n):
        return "gram"
    return "grid" if dims == 2 and n >= 20_000 and mode != "fuzzy-cmeans" else "lloyd"


def silhouette_of(distances: Float64Array, labels: Int32Array) -> float:
    """Return the mean silhouette of labels from plain (not squared) distances; -1 for a single cluster."""
    present, compact = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        return -1.0
    return _core.silhouette(distances, compact.astype(np.int32), len(present))


def silhouette_sample(n: int, seed: int) -> npt.NDArray[np.intp]:
    """Return the points that silhouettes are taken over: all, or a sorted random sample of 2,000."""
    if n <= _SILHOUETTE_SAMPLE:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, _SILHOUETTE_SAMPLE, replace=False))
