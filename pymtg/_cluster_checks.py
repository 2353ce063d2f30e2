"""What :class:`pymtg.FuzzyKMeans` may be asked for, and the points and matrices that it takes."""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils import check_array, check_random_state

from pymtg import _clustering as core
from pymtg._gram import Float64Array, as_float_array
from pymtg.errors import InvalidArgumentError, InvalidTypeError

if TYPE_CHECKING:
    from pymtg.cluster import FuzzyKMeans

__all__ = ["as_points", "check_number", "checked_gram", "checked_options", "checked_rows", "two_dimensional"]

MODES = ("kmeans-fuzzified", "fuzzy-cmeans", "kmeans", "points")
ALGORITHMS = ("auto", "gram", "grid", "lloyd")
_ROWS_CHECKED = 64


def checked_options(given: FuzzyKMeans) -> core.Options:
    """Return how to cluster, once every parameter of the estimator is one; draws a seed from its random state."""
    _require(given.mode in MODES, "mode", f"one of {', '.join(MODES)}", given.mode)
    _require(given.algorithm in ALGORITHMS, "algorithm", f"one of {', '.join(ALGORITHMS)}", given.algorithm)
    _require_real(given.fuzzifier, "fuzzifier")
    _require(1 < given.fuzzifier < math.inf, "fuzzifier", "above 1 and finite", given.fuzzifier)
    _require_real(given.tol, "tol")
    _require(0 <= given.tol < math.inf, "tol", "0 or above and finite", given.tol)
    for name in ("n_init", "max_iter"):
        _require_integer(getattr(given, name), name)
        _require(getattr(given, name) >= 1, name, "at least 1", getattr(given, name))
    if isinstance(given.n_clusters, str):
        _require(given.n_clusters == "auto", "n_clusters", "an integer or 'auto'", given.n_clusters)
        _check_range(given.cluster_range)
    else:
        _require_integer(given.n_clusters, "n_clusters")
        _require(given.n_clusters >= 1, "n_clusters", "at least 1", given.n_clusters)
    seed = _generator(given.random_state).randint(np.iinfo(np.int64).max, dtype=np.int64)
    return core.Options(
        given.mode, float(given.fuzzifier), int(given.n_init), int(given.max_iter), float(given.tol), int(seed)
    )


def check_number(n_clusters: int | str, n: int, what: str) -> None:
    """Raise InvalidArgumentError for more clusters than there are points."""
    if n_clusters != "auto" and int(n_clusters) > n:
        raise InvalidArgumentError(
            f"n_clusters must be at most the number of {what}; got n_clusters={n_clusters}, n_samples={n}"
        )


def two_dimensional(X: Any, mode: str) -> Any:
    """Return X with tensors as arrays and, in mode "points", ``[n, P, 2]`` as ``[n, 2 P]``."""
    if isinstance(X, torch.Tensor):
        X = as_float_array(X, "X")
    if mode == "points" and getattr(X, "ndim", 2) == 3:
        if X.shape[2] != 2:
            raise InvalidArgumentError(f"X must be [tasks, points, 2] in mode 'points'; got shape {X.shape}")
        X = X.reshape(len(X), -1)
    return X


def checked_rows(X: Any, minimum: int, estimator: FuzzyKMeans) -> core.FloatArray:
    """Return X as a float array ``[n, D]``; InvalidArgumentError where scikit-learn, or `minimum` rows, say no."""
    try:
        array: core.FloatArray = check_array(
            X,
            dtype=[np.float64, np.float32],
            order="C",
            ensure_min_samples=minimum,
            estimator=estimator,
            input_name="X",
        )
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from None
    return array


def as_points(X: core.FloatArray) -> core.FloatArray:
    """Return the points ``[n, P, 2]`` of rows ``[n, 2 P]``."""
    if X.shape[1] % 2:
        raise InvalidArgumentError(
            f"X must have an even number of columns in mode 'points', (x, y) pairs; got {X.shape[1]}"
        )
    return X.reshape(len(X), -1, 2)


def checked_gram(G: npt.ArrayLike | torch.Tensor) -> Float64Array:
    """Return a Gram matrix as float64, checked for shape, finite entries, symmetry and a diagonal without negatives."""
    gram = as_float_array(G, "the Gram matrix").astype(np.float64, copy=False)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise InvalidArgumentError(f"the Gram matrix must be square; got shape {gram.shape}")
    if len(gram) < 2:
        raise InvalidArgumentError(f"the Gram matrix must hold at least 2 points; got {len(gram)}")
    scale = max(float(np.abs(row).max()) for row in gram)
    if not math.isfinite(scale):
        raise InvalidArgumentError("the Gram matrix must be finite; it holds NaN or infinity")
    diagonal = gram.diagonal()
    asymmetry, squared = 0.0, math.inf
    for at in range(0, len(gram), _ROWS_CHECKED):  # a matrix of many points is too large for copies of it
        rows = slice(at, at + _ROWS_CHECKED)
        part, across = gram[rows], gram[:, rows].T
        asymmetry = max(asymmetry, float(np.abs(part - across).max()))
        squared = min(squared, float((diagonal[rows, None] + diagonal - 2 * part).min()))
    if asymmetry > 1e-8 * scale:
        raise InvalidArgumentError(f"the Gram matrix must be symmetric; got entries {asymmetry} apart")
    if diagonal.min() < -1e-12 * scale:
        raise InvalidArgumentError(f"the Gram matrix must not have a negative diagonal; got {diagonal.min()}")
    if squared < -1e-8 * scale:
        raise InvalidArgumentError(
            f"the Gram matrix must give no negative squared distance; got {squared} (is it a matrix of distances?)"
        )
    return gram


def _generator(random_state: Any) -> np.random.RandomState:
    """Return the generator that scikit-learn makes of a random state; typed errors for what it does not take."""
    if isinstance(random_state, (int, np.integer)) and not isinstance(random_state, bool):
        _require(0 <= int(random_state) < 2**32, "random_state", "in 0..2**32-1", random_state)
    elif random_state is not None and random_state is not np.random:
        _require_type(
            isinstance(random_state, np.random.RandomState),
            "random_state",
            "an integer, a numpy.random.RandomState or None",
            random_state,
        )
    generator: np.random.RandomState = check_random_state(random_state)
    return generator


def _check_range(cluster_range: Any) -> None:
    try:
        low, high = cluster_range
    except (TypeError, ValueError):
        raise InvalidTypeError(f"cluster_range must be a pair of integers; got {cluster_range!r}") from None
    _require_integer(low, "cluster_range[0]")
    _require_integer(high, "cluster_range[1]")
    _require(2 <= low <= high, "cluster_range", "(low, high) with 2 <= low <= high", cluster_range)


def _require(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        raise InvalidArgumentError(f"{name} must be {rule}; got {value!r}")


def _require_integer(value: object, name: str) -> None:
    _require_type(not isinstance(value, bool) and isinstance(value, numbers.Integral), name, "an integer", value)


def _require_real(value: object, name: str) -> None:
    _require_type(not isinstance(value, bool) and isinstance(value, numbers.Real), name, "a number", value)


def _require_type(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        raise InvalidTypeError(f"{name} must be {rule}; got {value!r} of type {type(value).__name__}")
