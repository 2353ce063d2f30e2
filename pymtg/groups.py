"""Groups of tasks: what clustering the tasks of a data map gives, and how to get it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pymtg._counting import counted
from pymtg._files import replacing
from pymtg._gram import Float64Array
from pymtg._grouping import clustered
from pymtg._layout_checks import checked_names
from pymtg.cluster import FuzzyKMeans
from pymtg.errors import FileFormatError, InvalidArgumentError

__all__ = ["TaskGroups", "cluster_tasks"]

_FORMAT = "pymtg.TaskGroups"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class TaskGroups:
    """T tasks in K groups.

    Parameters
    ----------
    names
        One unique, non-empty name per task.
    memberships
        ``[T, K]`` float64, not negative, each row summing to 1.
    labels
        ``[T]``, the group of each task.
    quality
        Figures: ``inertia``, ``silhouette`` (None where it is not defined), ``partition_coefficient`` (Bezdek's, the
        mean over tasks of the sum of squared memberships: 1 for hard groups, 1/K at the least) and, where the number
        of groups was chosen, ``silhouette_scores`` by number of groups.
    parameters
        The arguments that the clustering was called with.

    Raises
    ------
    InvalidArgumentError
        If names are empty or not unique, the shapes do not fit, memberships are not shares, or a label is no group.
    InvalidTypeError
        For names that are not strings.
    """

    names: tuple[str, ...]
    memberships: Float64Array
    labels: npt.NDArray[np.int64]
    quality: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = checked_names(self.names)
        memberships = np.array(self.memberships, dtype=np.float64)
        labels = np.array(self.labels)
        _check_groups(names, memberships, labels)
        labels = labels.astype(np.int64)
        memberships.flags.writeable = labels.flags.writeable = False
        for name, value in (("names", names), ("memberships", memberships), ("labels", labels)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "quality", dict(self.quality))
        object.__setattr__(self, "parameters", dict(self.parameters))

    @property
    def num_tasks(self) -> int:
        """T, the number of tasks."""
        return len(self.names)

    @property
    def num_groups(self) -> int:
        """K, the number of groups."""
        return int(self.memberships.shape[1])

    @property
    def groups(self) -> list[list[str]]:
        """The names of the tasks of each group, by label."""
        return [
            [n for n, label in zip(self.names, self.labels, strict=True) if label == k] for k in range(self.num_groups)
        ]

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, TaskGroups) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"TaskGroups({self._sizes()}: {self.groups!r})"

    def __str__(self) -> str:
        width = max(map(len, self.names))
        lines = [self._sizes()]
        for k in range(self.num_groups):
            members = np.flatnonzero(self.labels == k)
            lines.append(f"group {k} ({counted(len(members), 'task')})")
            for t in members:
                shares = " ".join(f"{u:.3f}" for u in self.memberships[t])
                lines.append(f"  {self.names[t]:<{width}}  {shares}")
        return "\n".join(lines)

    def _sizes(self) -> str:
        return f"{counted(self.num_tasks, 'task')} in {counted(self.num_groups, 'group')}"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description: ``tasks[name]`` with ``memberships`` and ``label``, and ``quality``."""
        tasks = {
            name: {"memberships": row.tolist(), "label": int(label)}
            for name, row, label in zip(self.names, self.memberships, self.labels, strict=True)
        }
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "num_groups": self.num_groups,
            "tasks": tasks,
            "quality": _jsonable(self.quality),
            "parameters": _jsonable(self.parameters),
        }

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> TaskGroups:
        """Build groups from what :meth:`to_dict` returned; FileFormatError if it is something else."""
        if not isinstance(description, Mapping) or description.get("format") != _FORMAT:
            raise FileFormatError(f"a description of task groups must have format {_FORMAT!r}")
        if description.get("version") != _VERSION:
            raise FileFormatError(f"task groups must be of version {_VERSION}; got {description.get('version')!r}")
        try:
            tasks = description["tasks"]
            memberships = np.array([entry["memberships"] for entry in tasks.values()], dtype=np.float64)
            labels = np.array([entry["label"] for entry in tasks.values()])
            quality = dict(description["quality"])
            scores = quality.get("silhouette_scores")
            if scores is not None:
                quality["silhouette_scores"] = {int(k): float(score) for k, score in scores.items()}
            return cls(tuple(tasks), memberships, labels, quality, dict(description["parameters"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"a description of task groups is malformed: {error!r}") from error

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the groups to a file; an existing one stays as it is until the new one is complete."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> TaskGroups:
        """Read what :meth:`to_json` wrote; FileFormatError if the file is truncated or something else."""
        try:
            description = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise FileFormatError(f"{os.fspath(path)} must be a JSON file of task groups; {error}") from error
        return cls.from_dict(description)


def cluster_tasks(
    data_map_or_gram: Any,
    n_clusters: int | str,
    task_names: Iterable[str] | None = None,
    *,
    mode: str = "kmeans-fuzzified",
    fuzzifier: float = 1.07,
    n_init: int = 10,
    max_iter: int = 300,
    tol: float = 1e-4,
    random_state: int | np.random.RandomState | None = None,
    cluster_range: tuple[int, int] = (2, 10),
) -> TaskGroups:
    """Group tasks by their data maps.

    Parameters
    ----------
    data_map_or_gram
        A :class:`pymtg.DataMap` (its snapshots where it has any, else its present state), or the matrix ``[T, T]`` of
        the tasks' inner products, an array, tensor or data frame, centred or not.
    n_clusters
        Number of groups, or ``"auto"``: chosen in `cluster_range` by silhouette.
    task_names
        Names of the tasks; by default those of the data map's layout or of the data frame's columns, or ``task0``,
        ``task1``, ...
    mode, fuzzifier, n_init, max_iter, tol, random_state, cluster_range
        As for :class:`pymtg.FuzzyKMeans`. Mode ``"points"`` needs a data map.

    Returns
    -------
    TaskGroups
        Groups are numbered by the first task they hold, in mode ``"points"`` by the first point.

    Raises
    ------
    InvalidArgumentError
        For more groups than tasks, or than tasks that differ; for a map in which nothing is recorded; for a matrix
        that is no finite Gram matrix; and for parameters out of range.
    InvalidTypeError
        For parameters of the wrong type.
    SnapshotsNotKeptError
        In mode ``"points"``, if the data map added its snapshots to a Gram matrix (``snapshots="gram"``).

    Notes
    -----
    The method is STG-MTL's (Sherif et al., 2024, arXiv 2307.03374).

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[0.0, 0.1], [0.1, 0.0], [5.0, 5.1]])
    >>> cluster_tasks(x @ x.T, 2, ["a", "b", "c"], random_state=0).groups
    [['a', 'b'], ['c']]
    """
    estimator = FuzzyKMeans(
        n_clusters,
        mode=mode,
        fuzzifier=fuzzifier,
        n_init=n_init,
        max_iter=max_iter,
        tol=tol,
        random_state=random_state,
        cluster_range=cluster_range,
    )
    return grouped_by(estimator, data_map_or_gram, task_names)


def grouped_by(
    estimator: FuzzyKMeans, data_map_or_gram: Any, task_names: Iterable[str] | None = None, number: str = "n_clusters"
) -> TaskGroups:
    """Group tasks as :func:`cluster_tasks` does, by an estimator whose number of clusters the caller calls `number`."""
    names, silhouette = clustered(estimator, data_map_or_gram, task_names, number)
    memberships = estimator.memberships_
    quality: dict[str, Any] = {
        "inertia": float(estimator.inertia_),
        "silhouette": silhouette,
        "partition_coefficient": float((memberships**2).sum(axis=1).mean()),
    }
    if hasattr(estimator, "silhouette_scores_"):
        quality["silhouette_scores"] = dict(estimator.silhouette_scores_)
    parameters = {name: value for name, value in estimator.get_params().items() if name != "algorithm"}
    if isinstance(parameters["random_state"], np.random.RandomState):
        parameters["random_state"] = None
    return TaskGroups(names, memberships, estimator.labels_.astype(np.int64), quality, _jsonable(parameters))


def _check_groups(names: tuple[str, ...], memberships: Float64Array, labels: npt.NDArray[Any]) -> None:
    if memberships.ndim != 2 or memberships.shape[0] != len(names) or memberships.shape[1] < 1:
        raise InvalidArgumentError(
            f"memberships must be [tasks, groups] for {len(names)} tasks; got {memberships.shape}"
        )
    sums = memberships.sum(axis=1)
    if not (np.all(memberships >= 0) and np.all(np.abs(sums - 1) <= 1e-6)):
        raise InvalidArgumentError(f"memberships must be shares that sum to 1 per task; got sums {sums}")
    if labels.shape != (len(names),) or labels.dtype.kind not in "iu":
        raise InvalidArgumentError(f"labels must be {len(names)} integers; got {labels!r}")
    if labels.min() < 0 or labels.max() >= memberships.shape[1]:
        raise InvalidArgumentError(f"labels must be 0 to {memberships.shape[1] - 1}; got {labels!r}")


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
