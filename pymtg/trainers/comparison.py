"""What a comparison returns: figures over seeds, differences with their errors, and the views that hold them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymtg.errors import InvalidArgumentError
from pymtg.metrics import best_value
from pymtg.trainers.results import MethodResult, json_number

__all__ = ["Comparison", "ComparisonView", "Difference", "MethodSummary", "Summary"]


@dataclass(frozen=True)
class Summary:
    """A figure over seeds: its values, their mean and its standard error (None with one seed)."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return math.fsum(self.values) / len(self.values)

    @property
    def stderr(self) -> float | None:
        """The sample standard deviation over the square root of the number of seeds; None for a single seed."""
        n = len(self.values)
        if n < 2:
            return None
        return math.sqrt(math.fsum((v - self.mean) ** 2 for v in self.values) / (n - 1) / n)

    def to_dict(self) -> dict[str, Any]:
        """Return mean, stderr and values, JSON-ready."""
        stderr = self.stderr
        return {
            "mean": json_number(self.mean),
            "stderr": None if stderr is None else json_number(stderr),
            "values": [json_number(v) for v in self.values],
        }


@dataclass(frozen=True)
class Difference:
    """The difference of two methods' scores, seed by seed: mean, standard error, and whether it counts as a tie.

    The seeds are paired (same split, same joint network), so the error is that of the paired differences. A
    difference below two standard errors is a tie, and so is any difference found with a single seed.
    """

    mean: float
    stderr: float | None

    @property
    def tie(self) -> bool:
        """True unless the difference is at least two standard errors (and not zero)."""
        return self.stderr is None or self.mean == 0 or not abs(self.mean) >= 2 * self.stderr


@dataclass(frozen=True)
class MethodSummary:
    """One method over all seeds: per metric, the mean over tasks; its cost; and the results it was made from."""

    name: str
    metrics: Mapping[str, Summary]
    seconds: Summary
    parameters: Summary
    epochs: Summary
    results: tuple[MethodResult, ...]

    @classmethod
    def of(cls, results: tuple[MethodResult, ...]) -> MethodSummary:
        """Summarise one method's results, one per seed."""
        first = results[0]
        return cls(
            name=first.name,
            metrics={metric: Summary(tuple(r.scores.mean[metric] for r in results)) for metric in first.scores.mean},
            seconds=Summary(tuple(r.seconds for r in results)),
            parameters=Summary(tuple(float(r.parameters) for r in results)),
            epochs=Summary(tuple(float(r.epochs) for r in results)),
            results=results,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return metrics and costs over seeds, and per seed the scores by task and the groups if any, JSON-ready."""
        groups = [result.groups.to_dict() for result in self.results if result.groups is not None]
        return {
            "metrics": {metric: summary.to_dict() for metric, summary in self.metrics.items()},
            "seconds": self.seconds.to_dict(),
            "parameters": self.parameters.to_dict(),
            "epochs": self.epochs.to_dict(),
            "scores": [result.scores.to_dict() for result in self.results],
            **({"groups": groups} if groups else {}),
        }


@dataclass(frozen=True)
class ComparisonView:
    """All methods under one training rule: ``"fixed"`` epochs, ``"best"`` validation epoch, or ``"equal"`` totals."""

    name: str
    title: str
    methods: Mapping[str, MethodSummary]

    def difference(self, method: str, other: str, metric: str) -> Difference:
        """Return the paired difference ``method - other`` of a metric over the seeds.

        Raises
        ------
        InvalidArgumentError
            If either method or the metric is not in this view.
        """
        mine, theirs = (self._summary(name, metric).values for name in (method, other))
        gap = Summary(tuple(a - b for a, b in zip(mine, theirs, strict=True)))
        return Difference(gap.mean, gap.stderr)

    def best(self, metric: str) -> str | None:
        """Return the method with the best mean of a metric (the lowest of an RMSE); None where none is defined."""
        means = {name: self._summary(name, metric).mean for name in self.methods}
        value = best_value(metric, means.values())
        return next((name for name, mean in means.items() if mean == value), None)

    def _summary(self, method: str, metric: str) -> Summary:
        if method not in self.methods:
            raise InvalidArgumentError(f"method must be one of {list(self.methods)}; got {method!r}")
        metrics = self.methods[method].metrics
        if metric not in metrics:
            raise InvalidArgumentError(f"metric must be one of {list(metrics)}; got {metric!r}")
        return metrics[metric]

    def to_dict(self) -> dict[str, Any]:
        """Return title and methods, JSON-ready."""
        return {"title": self.title, "methods": {name: m.to_dict() for name, m in self.methods.items()}}


@dataclass(frozen=True)
class Comparison:
    """Methods x seeds on one data set, in up to three views; see :func:`pymtg.trainers.compare`."""

    data: str
    seeds: tuple[int, ...]
    num_groups: int | str
    views: Mapping[str, ComparisonView]
    settings: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""
        return {
            "data": self.data,
            "seeds": list(self.seeds),
            "num_groups": self.num_groups,
            "settings": dict(self.settings),
            "views": {name: view.to_dict() for name, view in self.views.items()},
        }

    def to_json(self, path: str | Path) -> None:
        """Write :meth:`to_dict` to a file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def to_text(self, metric: str | None = None) -> str:
        """Return the views as aligned text tables; ties with each view's best are marked ``~``.

        `metric` stands first: by default balanced accuracy, or R^2 where all tasks are regressions.
        """
        from pymtg.trainers._tables import comparison_text

        return comparison_text(self, metric)

    def to_markdown(self, metric: str | None = None) -> str:
        """Return the views as Markdown tables, as :meth:`to_text`."""
        from pymtg.trainers._tables import comparison_markdown

        return comparison_markdown(self, metric)
