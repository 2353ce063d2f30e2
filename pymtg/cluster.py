"""Fuzzy k-means as a scikit-learn estimator over the compiled core."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from pymtg import _clustering as core
from pymtg import _core
from pymtg._cluster_checks import as_points, check_number, checked_gram, checked_options, checked_rows, two_dimensional
from pymtg._gram import Float64Array, gram_matrix
from pymtg.errors import InvalidArgumentError

__all__ = ["FuzzyKMeans"]


class FewerPointsWarning(ConvergenceWarning):  # type: ignore[misc]
    """There are fewer distinct points than clusters."""

    def __init__(self, message: str, found: int = 0) -> None:  # a copy gets the message first, then the rest
        super().__init__(message)
        self.found = found


class FewerPointsError(InvalidArgumentError):
    """There are too few distinct points to choose a number of clusters."""

    def __init__(self, message: str, found: int = 0) -> None:  # a copy gets the message first, then the rest
        super().__init__(message)
        self.found = found


class FuzzyKMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """K-means with fuzzy memberships, for few points in very many dimensions and for many points in few.

    Parameters
    ----------
    n_clusters
        Number of clusters, or ``"auto"``: the number in `cluster_range` with the highest mean silhouette
        (Rousseeuw 1987), the lowest of them among equals.
    mode
        ``"kmeans-fuzzified"``: k-means, then one fuzzification from its centroids (STG-MTL, arXiv 2307.03374).
        ``"fuzzy-cmeans"``: Bezdek's alternating updates, begun at the best k-means partition.
        ``"kmeans"``: hard, memberships 0 or 1.
        ``"points"``: each row of X is a task with P points in the plane, ``(x_1, y_1, ..., x_P, y_P)`` (a data map's
        (mean, std) pairs); all n * P points are clustered by hard k-means, and a task's membership in a cluster is
        the share of its points there. X may also be given as ``[n, P, 2]``.
    fuzzifier
        m > 1 in ``u_ik = d_ik^(-2/(m-1)) / sum_j d_ij^(-2/(m-1))``; near 1 memberships are almost hard.
    n_init
        Starts from greedy k-means++ seeds; the one with the lowest inertia is kept.
    max_iter
        Most iterations of one start.
    tol
        Where iterations stop: on the "lloyd" and "grid" algorithms, centre shifts relative to the features' mean
        variance, as in :class:`sklearn.cluster.KMeans`; for fuzzy c-means, the largest change of a membership.
        On the Gram matrix k-means always runs until no single point's move lowers the inertia, and then tries
        swaps of clusters on the best start.
    random_state
        Seed, below 2**32, or a :class:`numpy.random.RandomState`; the same seed gives the same result with any number
        of threads.
    algorithm
        ``"gram"``: everything from the centred float64 Gram matrix, with Hartigan's single-point moves after Lloyd and
        swaps of whole clusters at the end;
        ``"lloyd"``: Lloyd's algorithm on the points; ``"grid"``: the same, exactly, on a grid (two dimensions only);
        ``"auto"``: chosen by the shape.
    cluster_range
        Smallest and largest number of clusters to try for ``n_clusters="auto"``.

    Attributes
    ----------
    labels_
        [n] int32, the nearest cluster (largest membership). Clusters are numbered by the first point they hold.
    memberships_
        [n, K] float64; rows sum to 1.
    cluster_centers_
        [K, D] float64 ([K, 2] in mode "points"); absent after :meth:`fit_gram`.
    centroid_coefficients_
        [K, n] float64, after :meth:`fit_gram` only: centroid k is ``sum_i coefficients[k, i] * x_i``.
    inertia_
        Sum of squared distances to the nearest centre; for fuzzy c-means its objective, ``sum u^m d^2``.
    n_iter_
        Iterations of the winning start.
    n_clusters_
        K, as given or as chosen.
    silhouette_scores_
        For ``n_clusters="auto"``: mean silhouette by number of clusters (over at most 2,000 points).
    n_features_in_
        Number of columns of X; absent after :meth:`fit_gram`.

    Examples
    --------
    >>> import numpy as np
    >>> from pymtg import FuzzyKMeans
    >>> X = np.array([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0], [9.0, 8.0]])
    >>> FuzzyKMeans(2, random_state=0).fit(X).labels_
    array([0, 0, 1, 1], dtype=int32)
    """

    def __init__(
        self,
        n_clusters: int | str = 8,
        *,
        mode: str = "kmeans-fuzzified",
        fuzzifier: float = 1.07,
        n_init: int = 10,
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: int | np.random.RandomState | None = None,
        algorithm: str = "auto",
        cluster_range: tuple[int, int] = (2, 10),
    ) -> None:
        self.n_clusters = n_clusters
        self.mode = mode
        self.fuzzifier = fuzzifier
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.algorithm = algorithm
        self.cluster_range = cluster_range

    def fit(self, X: npt.ArrayLike | torch.Tensor, y: object = None) -> FuzzyKMeans:
        """Cluster the rows of X ``[n, D]``, an array or tensor; float32 and float64 are used as they are.

        Raises
        ------
        InvalidArgumentError
            If X is not 2-D, holds NaN or infinity, has fewer than two rows or fewer rows than clusters, or if a
            parameter is out of its range.
        InvalidTypeError
            If X is not numeric or a parameter has the wrong type.

        Warns
        -----
        ConvergenceWarning
            If X has fewer distinct points than clusters; the clusters beyond them repeat the others' centres.
        """
        return self._fitted(X)

    def _fitted(self, X: Any, observed: npt.NDArray[np.bool_] | None = None) -> FuzzyKMeans:
        """Fit on X; in mode "points" on those of its points that `observed` ``[n, P]`` marks, at least one a row."""
        options = checked_options(self)
        raw = two_dimensional(X, self.mode)
        array = checked_rows(raw, 2, self)
        if self.mode == "points":
            result, curve = self._fit_task_points(array, options, observed)
        else:
            result, curve = self._fit_rows(array, options)
        validate_data(self, raw, skip_check_array=True)
        return self._keep(result, curve, frames=4)

    def fit_gram(self, G: npt.ArrayLike | torch.Tensor) -> FuzzyKMeans:
        """Cluster n points by the matrix ``[n, n]`` of their inner products, centred over the points or not.

        Distances are differences of G's entries: for nearly identical points use a Gram matrix of centred features
        with float64 sums, such as :meth:`pymtg.DataMap.gram` gives. Without the features there are no centres in
        their space: :meth:`predict`, :meth:`transform` and :meth:`score` are not available afterwards.

        Raises
        ------
        InvalidArgumentError
            If G is not square, symmetric and finite, or no Gram matrix (a negative diagonal), or has fewer points
            than clusters; for mode "points" and algorithms other than "gram", which need the points themselves.
        InvalidTypeError
            If G is not numeric.
        """
        options = checked_options(self)
        result, curve = self._cluster_gram(checked_gram(G), options)
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self, name):
                delattr(self, name)
        return self._keep(result, curve)

    def predict(self, X: npt.ArrayLike | torch.Tensor) -> npt.NDArray[np.int32]:
        """Return the nearest centre ``[n]`` of each row of X (in mode "points" that of most of its points)."""
        if self.mode == "points":
            return core.largest(self.predict_memberships(X))
        return core.largest(-self._squared_distances(X))

    def predict_memberships(self, X: npt.ArrayLike | torch.Tensor) -> Float64Array:
        """Return the memberships ``[n, K]`` of the rows of X in the fitted clusters."""
        squared = self._squared_distances(X)
        if self.mode == "points":
            labels = squared.argmin(axis=-1).astype(np.int32)
            return core.shares(labels, self.n_clusters_)
        if self.mode == "kmeans":
            return core.one_hot(core.largest(-squared), self.n_clusters_)
        return core.fuzzify(squared, self.fuzzifier)

    def transform(self, X: npt.ArrayLike | torch.Tensor) -> Float64Array:
        """Return the distances ``[n, K]`` to the centres; in mode "points" the root mean square over a row's points."""
        squared = self._squared_distances(X)
        mean = squared.mean(axis=1) if self.mode == "points" else squared
        distances: Float64Array = np.sqrt(mean)
        return distances

    def score(self, X: npt.ArrayLike | torch.Tensor, y: object = None) -> float:
        """Return the opposite of the objective of X under the fitted centres: the closer to them, the higher.

        The objective is that of ``inertia_``, as in :class:`sklearn.cluster.KMeans`: the sum of squared distances of
        the rows (in mode "points" of their points) to the nearest centre; for fuzzy c-means ``sum u^m d^2`` with the
        memberships u of :meth:`predict_memberships`.

        Raises
        ------
        InvalidArgumentError
            After :meth:`fit_gram`: there are no centres to measure distances to.
        """
        squared = self._squared_distances(X)
        if self.mode == "fuzzy-cmeans":
            return -float((core.fuzzify(squared, self.fuzzifier) ** self.fuzzifier * squared).sum())
        return -float(squared.min(axis=-1).sum())

    @property
    def memberships_(self) -> Float64Array:
        """Memberships ``[n, K]`` of the fitted points; hard ones are made from the labels on demand."""
        if not hasattr(self, "labels_"):
            raise AttributeError("memberships_ is there once the estimator is fitted")
        kept: Float64Array | None = self._memberships
        return core.one_hot(self.labels_, self.n_clusters_) if kept is None else kept

    @property
    def _n_features_out(self) -> int:
        return int(self.n_clusters_)

    # -- fitting -------------------------------------------------------------------------------------------------

    def _fit_rows(self, X: core.FloatArray, options: core.Options) -> tuple[core.Clustering, dict[int, float] | None]:
        way = core.choose_algorithm(X.shape[0], X.shape[1], self.algorithm, self.mode)
        check_number(self.n_clusters, len(X), "rows of X")
        if way == "gram":
            distances = core.distances_from_gram(gram_matrix(X))
            result, curve = self._search(
                lambda k: core.cluster_distances(distances, k, options), distances, np.arange(len(X))
            )
            return core.with_centers(result, X), curve
        sample = core.silhouette_sample(len(X), options.seed)
        between = core.distances_from_gram(gram_matrix(X[sample])) if self.n_clusters == "auto" else None
        return self._search(lambda k: core.cluster_points(X, k, options, grid=way == "grid"), between, sample)

    def _fit_task_points(
        self, X: core.FloatArray, options: core.Options, observed: npt.NDArray[np.bool_] | None
    ) -> tuple[core.Clustering, dict[int, float] | None]:
        points = as_points(X)
        if observed is None or observed.all():
            result, curve = self._fit_rows(points.reshape(-1, 2), options)
            labels = result.labels.reshape(len(X), -1)
        else:
            result, curve = self._fit_rows(points[observed], options)
            labels = np.full(observed.shape, -1, np.int32)
            labels[observed] = result.labels
        clusters = len(result.centers) if result.centers is not None else 0
        shares = core.shares(labels, clusters)
        return (
            replace(result, memberships=shares, labels=core.largest(shares)),
            curve,
        )

    def _cluster_gram(
        self, gram: Float64Array, options: core.Options
    ) -> tuple[core.Clustering, dict[int, float] | None]:
        if self.mode == "points":
            raise InvalidArgumentError(
                "mode 'points' clusters single points, which a Gram matrix of tasks does not hold"
            )
        if self.algorithm not in ("auto", "gram"):
            raise InvalidArgumentError(
                f"algorithm must be 'auto' or 'gram' to fit a Gram matrix; got {self.algorithm!r}"
            )
        check_number(self.n_clusters, len(gram), "points of the Gram matrix")
        distances = core.distances_from_gram(gram)
        return self._search(lambda k: core.cluster_distances(distances, k, options), distances, np.arange(len(gram)))

    def _search(
        self,
        cluster: Callable[[int], core.Clustering],
        squared: Float64Array | None,
        sample: npt.NDArray[np.intp],
    ) -> tuple[core.Clustering, dict[int, float] | None]:
        """Cluster, for "auto" with each number in the range; return the best result and the silhouette curve."""
        if self.n_clusters != "auto":
            return cluster(int(self.n_clusters)), None
        assert squared is not None
        distinct = _core.distinct_points(squared)[0]
        low, high = self.cluster_range
        high = min(high, distinct - 1)
        if high < low:
            raise FewerPointsError(
                f"n_clusters='auto' needs more distinct points than the smallest number of clusters; got {distinct} "
                f"for cluster_range={self.cluster_range}",
                distinct,
            )
        plain = np.sqrt(squared)
        results = {k: cluster(k) for k in range(low, high + 1)}
        curve = {k: core.silhouette_of(plain, result.labels[sample]) for k, result in results.items()}
        return results[max(curve, key=lambda k: curve[k])], curve

    def _keep(self, result: core.Clustering, curve: dict[int, float] | None, frames: int = 3) -> FuzzyKMeans:
        """Keep what was learned; a warning is that of the line so many `frames` up, which called fit or fit_gram."""
        for name in ("cluster_centers_", "centroid_coefficients_", "silhouette_scores_"):
            if hasattr(self, name):
                delattr(self, name)
        self.labels_ = result.labels
        self._memberships = result.memberships
        self.inertia_ = result.inertia
        self.n_iter_ = result.n_iter
        if result.centers is not None:
            self.cluster_centers_ = result.centers
            self.n_clusters_ = len(result.centers)
        elif result.coefficients is not None:
            self.centroid_coefficients_ = result.coefficients
            self.n_clusters_ = len(result.coefficients)
        if curve is not None:
            self.silhouette_scores_ = curve
        if result.found < self.n_clusters_:
            message = (
                f"Number of distinct clusters ({result.found}) found smaller than n_clusters ({self.n_clusters_}). "
                "Possibly due to duplicate points in X."
            )
            warnings.warn(FewerPointsWarning(message, result.found), stacklevel=frames)
        return self

    def _squared_distances(self, X: Any) -> Float64Array:
        """[n, K], or [n, P, K] for task points."""
        check_is_fitted(self)
        if not hasattr(self, "cluster_centers_"):
            raise InvalidArgumentError(
                "this estimator was fitted from a Gram matrix, which has no centres in the space of the features: "
                "predict, transform and score need fit(X); labels_ and memberships_ hold the fitted points' clusters"
            )
        raw = two_dimensional(X, self.mode)
        array = checked_rows(raw, 1, self)
        if self.mode != "points":
            validate_data(self, raw, reset=False, skip_check_array=True)
            return _core.center_distances(array, self.cluster_centers_, torch.get_num_threads())
        points = as_points(array)
        flat = _core.center_distances(points.reshape(-1, 2), self.cluster_centers_, torch.get_num_threads())
        return flat.reshape(len(points), -1, self.n_clusters_)
