"""Clustering tasks by their data map or their Gram matrix: what can be grouped, and what is wrong with the rest."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pymtg import _clustering as core
from pymtg._cluster_checks import checked_gram
from pymtg._gram import Float64Array, as_float_array
from pymtg._layout_checks import check_task_order, checked_names, column_names
from pymtg._ranges import span
from pymtg.cluster import FewerPointsError, FewerPointsWarning, FuzzyKMeans
from pymtg.errors import InvalidArgumentError, InvalidTypeError

__all__ = ["clustered"]


def clustered(
    estimator: FuzzyKMeans, data_map_or_gram: Any, task_names: Iterable[str] | None, number: str
) -> tuple[tuple[str, ...], float | None]:
    """Fit the estimator; return the names of the tasks and their mean silhouette, None where it is not defined.

    `number` is what the caller calls the estimator's number of clusters, for the errors to name it.
    """
    data_map = _data_map(data_map_or_gram)
    features, observed = _features(estimator.mode, data_map_or_gram, data_map)
    names = _names(task_names, data_map_or_gram, data_map, len(features))
    _check_number(estimator.n_clusters, len(features), number)
    if data_map is not None and not features.any():
        _check_recorded(data_map)
    if observed is not None and not observed.any(axis=1).all():
        name = names[int(np.argmin(observed.any(axis=1)))]
        raise InvalidArgumentError(f"the data map must hold a point of every task in mode 'points'; {name!r} has none")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FewerPointsWarning)
        try:
            return names, _fit(estimator, features, observed)
        except (FewerPointsWarning, FewerPointsError) as fewer:
            raise _too_few(estimator, data_map, len(features), fewer.found, number) from None


def _data_map(data_map_or_gram: Any) -> Any:
    """Return the data map, or None for a matrix; InvalidTypeError for anything else."""
    if isinstance(data_map_or_gram, Sequence) or hasattr(data_map_or_gram, "__array__"):
        return None
    if not hasattr(data_map_or_gram, "gram"):
        raise InvalidTypeError(
            f"data_map_or_gram must be a DataMap or a [T, T] matrix; got {type(data_map_or_gram).__name__}"
        )
    return data_map_or_gram


def _features(mode: str, data_map_or_gram: Any, data_map: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
    """Return what to cluster: a Gram matrix [T, T], or points [T, P, 2] and which of them were observed [T, P]."""
    if data_map is None:
        return checked_gram(data_map_or_gram), None
    return _points(data_map) if mode == "points" else (checked_gram(data_map.gram()), None)


def _names(task_names: Iterable[str] | None, data_map_or_gram: Any, data_map: Any, tasks: int) -> tuple[str, ...]:
    """Return the names of the tasks, checked, as they were given or as the data has them."""
    if task_names is None and data_map is not None:
        task_names = data_map.layout.names
    if task_names is None:
        task_names = column_names(data_map_or_gram) or [f"task{t}" for t in range(tasks)]
    names = checked_names(task_names, "task_names")
    if len(names) != tasks:
        raise InvalidArgumentError(f"task_names must have one entry per task ({tasks}); got {len(names)}")
    if data_map is None:
        check_task_order(data_map_or_gram, names, "task_names", "data_map_or_gram")
    return names


def _check_number(n_clusters: object, tasks: int, number: str) -> None:
    """Raise InvalidArgumentError for more groups than tasks; what is no number at all is the estimator's to refuse."""
    if isinstance(n_clusters, (int, np.integer)) and n_clusters > tasks:
        raise InvalidArgumentError(
            f"{number} must be at most the number of tasks ({tasks}), or 'auto'; got {n_clusters}"
        )


def _check_recorded(data_map: Any) -> None:
    """Raise InvalidArgumentError for a map without an observation; where snapshots are forgotten its end tells."""
    kept = getattr(data_map, "snapshot_kind", None) != "gram"
    moments = (list(data_map.snapshots) if kept else []) or [data_map]
    if not any(bool(moment.count.any()) for moment in moments):
        where = f"up to its last snapshot (epoch {moments[-1].epoch})" if moments[-1] is not data_map else "in it"
        raise InvalidArgumentError(
            f"the data map must hold observations to group tasks by; nothing is recorded {where}"
        )


def _too_few(estimator: FuzzyKMeans, data_map: Any, tasks: int, found: int, number: str) -> InvalidArgumentError:
    """Return the error for tasks, or points of theirs, of which too few differ."""
    if estimator.mode == "points":
        differing, there = "(mean, std) points that differ", f"{found}"
    else:
        differing, there = "tasks that differ", f"{found} of {tasks}"
    if estimator.n_clusters == "auto":
        least = estimator.cluster_range[0]
        message = f"{number}='auto' needs more {differing} than the smallest number of groups, {least}; got {there}"
    else:
        message = f"{number} must be at most the number of {differing} ({there}); got {estimator.n_clusters}"
    if data_map is not None and _regressions_all_or_nothing(data_map):
        message += (
            "; every probability of the regression tasks is 0 or 1, as where targets are not standardised: "
            "a data map takes a difference of 1 for much"
        )
    return InvalidArgumentError(message)


def _regressions_all_or_nothing(data_map: Any) -> bool:
    """Whether there are regression tasks and all their observations were perfect hits or far off."""
    if not getattr(data_map.layout, "has_regression", False):
        return False
    mean = data_map.mean[:, data_map.layout.by_kind()["regression"]]
    return bool(((mean == 0) | (mean == 1)).all())


def _fit(estimator: FuzzyKMeans, features: npt.NDArray[Any], observed: npt.NDArray[np.bool_] | None) -> float | None:
    """Fit on a Gram matrix [T, T], or on observed points [T, P, 2]; return the mean silhouette where there is one."""
    if features.ndim == 3:
        estimator._fitted(features, observed)
        return None
    with span("clustering"):
        estimator.fit_gram(features)
        return _silhouette(core.distances_from_gram(features), estimator.labels_)


def _points(data_map: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return all (mean, std) points of all snapshots, tasks as rows: [T, P, 2], and [T, P] which were observed."""
    snapshots = list(getattr(data_map, "snapshots", ())) or [data_map]
    parts, there = [], []
    for snapshot in snapshots:
        there.append((snapshot.count > 0).cpu().numpy().T)
        planes = [as_float_array(plane, "the data map").T for plane in (snapshot.mean, snapshot.std)]
        parts.append(np.stack(planes, axis=-1))
    points = np.concatenate(parts, axis=1)
    if not np.isfinite(points).all():
        raise InvalidArgumentError("the data map must be finite in mode 'points'; it holds NaN or infinity")
    return points, np.concatenate(there, axis=1)


def _silhouette(squared: Float64Array, labels: core.Int32Array) -> float | None:
    """Mean silhouette; None where it is not defined (a single group, or each task alone in its own)."""
    if not 2 <= len(np.unique(labels)) < len(labels):
        return None
    return core.silhouette_of(np.sqrt(squared), labels)
