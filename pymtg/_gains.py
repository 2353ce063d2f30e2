"""Total Error and Normalized Gain, used through :mod:`pymtg.metrics`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pymtg.errors import InvalidArgumentError, InvalidTypeError

if TYPE_CHECKING:
    from pymtg.metrics import Scores

__all__ = ["TaskFigures", "normalized_gain", "total_error"]


@dataclass(frozen=True)
class TaskFigures:
    """One figure per task, in per cent; NaN where it is not defined."""

    tasks: dict[str, float]

    @property
    def defined(self) -> int:
        """The number of tasks that have the figure."""
        return sum(not math.isnan(value) for value in self.tasks.values())

    @property
    def total(self) -> float:
        """The sum over the tasks that have the figure; NaN where none has."""
        return math.fsum(v for v in self.tasks.values() if not math.isnan(v)) if self.defined else math.nan

    @property
    def mean(self) -> float:
        """The mean over the tasks that have the figure; NaN where none has."""
        return self.total / self.defined if self.defined else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return total, mean and tasks, for JSON: None stands for NaN."""
        plain = {name: None if math.isnan(value) else value for name, value in self.tasks.items()}
        total, mean = (None if math.isnan(value) else value for value in (self.total, self.mean))
        return {"total": total, "mean": mean, "tasks": plain}


def total_error(scores: Scores | Mapping[str, Any]) -> TaskFigures:
    """Return the errors ``100 (1 - accuracy)`` of the tasks; their :attr:`~TaskFigures.total` is the Total Error.

    Parameters
    ----------
    scores
        What :func:`pymtg.metrics.score` returned, or its ``to_dict()``, as metrics.json holds it for a method.

    Returns
    -------
    One figure per task: NaN, and so left out of total and mean, for a regression task, whose error is no share, and
    for a task without labels.

    Notes
    -----
    Gao et al., "DMTG: One-Shot Differentiable Multi-Task Grouping", ICML 2024.
    """
    return TaskFigures({name: 100 * (1 - _figure(of, "accuracy")) for name, of in _tasks(scores, "scores").items()})


def normalized_gain(scores: Scores | Mapping[str, Any], reference: Scores | Mapping[str, Any]) -> TaskFigures:
    """Return ``100 (e_ref - e) / e_ref`` per task; their :attr:`~TaskFigures.mean` is the Normalized Gain.

    e is ``1 - accuracy``, or the RMSE of a regression task. Positive where `scores` err less than `reference`.

    Parameters
    ----------
    scores, reference
        What :func:`pymtg.metrics.score` returned, or its ``to_dict()``, as metrics.json holds it for a method.
        Scored on the same labels, or the gain means nothing.

    Returns
    -------
    One figure per task of `scores`: NaN, and so left out of the mean, where either error is not defined or the
    reference makes none.

    Raises
    ------
    InvalidArgumentError
        If `reference` lacks a task.
    InvalidTypeError
        If either is neither Scores nor such a dict.
    """
    ours, theirs = _tasks(scores, "scores"), _tasks(reference, "reference")
    absent = next((name for name in ours if name not in theirs), None)
    if absent is not None:
        raise InvalidArgumentError(f"reference must hold every task of scores; it has no {absent!r}")
    return TaskFigures({name: _gain(_error(ours[name]), _error(theirs[name])) for name in ours})


def _gain(error: float, reference: float) -> float:
    return 100 * (reference - error) / reference if reference > 0 else math.nan


def _error(figures: Mapping[str, Any]) -> float:
    accuracy = _figure(figures, "accuracy")
    return _figure(figures, "rmse") if math.isnan(accuracy) else 1 - accuracy


def _figure(figures: Mapping[str, Any], metric: str) -> float:
    value = figures.get(metric)
    return math.nan if value is None else float(value)


def _tasks(scores: Any, what: str) -> Mapping[str, Mapping[str, Any]]:
    tasks = scores.get("tasks") if isinstance(scores, Mapping) else getattr(scores, "tasks", None)
    if not isinstance(tasks, Mapping) or not all(isinstance(of, Mapping) for of in tasks.values()):
        raise InvalidTypeError(
            f"{what} must be Scores, or a dict with 'tasks' as Scores.to_dict returns; got {type(scores).__name__}"
        )
    return tasks
