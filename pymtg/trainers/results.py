"""What trainers and comparisons return: frozen records, JSON-ready through ``to_dict``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pymtg.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pymtg.datamap import DataMap
    from pymtg.groups import TaskGroups
    from pymtg.metrics import Scores

__all__ = [
    "Comparison",
    "ComparisonView",
    "Difference",
    "EpochRecord",
    "MethodResult",
    "MethodSummary",
    "STGResult",
    "StageResult",
    "Summary",
]


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of one network; epochs count from 1.

    ``loss`` is the weighted total and ``task_losses`` (T entries) the unweighted losses, both averaged over the
    epoch's rows. ``val_score`` is the monitored metric's mean over tasks on the validation set, weighted as the
    training loss is (None without one); ``val_task_scores`` its T entries, NaN where a task's is undefined.
    """

    epoch: int
    loss: float
    task_losses: tuple[float, ...]
    val_score: float | None
    val_task_scores: tuple[float, ...] | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return {
            "epoch": self.epoch,
            "loss": self.loss,
            "task_losses": list(self.task_losses),
            "val_score": self.val_score,
            "val_task_scores": None if self.val_task_scores is None else [_number(v) for v in self.val_task_scores],
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class StageResult:
    """One network's training: its name ("joint", "group 0", ...), epochs run, seconds, parameters and history.

    ``best_epoch`` is the epoch whose weights were kept; None where the last epoch's were.
    """

    name: str
    epochs: int
    best_epoch: int | None
    seconds: float
    parameters: int
    history: tuple[EpochRecord, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return {
            "name": self.name,
            "epochs": self.epochs,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
            "parameters": self.parameters,
            "history": [record.to_dict() for record in self.history],
        }


@dataclass(frozen=True)
class STGResult:
    """What :meth:`pymtg.STGTrainer.fit` found and what it took."""

    joint: StageResult
    specialised: tuple[StageResult, ...]
    grouping_seconds: float
    groups: TaskGroups
    data_map: DataMap
    snapshot_epochs: tuple[int, ...]
    seed: int

    @property
    def stages(self) -> tuple[StageResult, ...]:
        """The joint stage, then the K specialised ones."""
        return (self.joint, *self.specialised)

    @property
    def seconds(self) -> float:
        """Wall seconds of all stages."""
        return self.grouping_seconds + sum(stage.seconds for stage in self.stages)

    @property
    def parameters(self) -> int:
        """Parameters of the K specialised networks, which is what prediction holds in memory."""
        return sum(stage.parameters for stage in self.specialised)

    @property
    def epochs(self) -> int:
        """Epochs over all 1 + K networks."""
        return sum(stage.epochs for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the data map, JSON-ready."""
        return {
            "seed": self.seed,
            "seconds": self.seconds,
            "parameters": self.parameters,
            "epochs": self.epochs,
            "snapshot_epochs": list(self.snapshot_epochs),
            "grouping_seconds": self.grouping_seconds,
            "stages": [stage.to_dict() for stage in self.stages],
            "groups": self.groups.to_dict(),
        }


@dataclass(frozen=True)
class MethodResult:
    """One method's scores on the test set with one seed, and its cost.

    ``seconds`` is the training time of every network the method needs, also of those that another method trained
    for it; ``parameters`` those of the networks it predicts with; ``epochs`` the sum over networks.
    """

    name: str
    scores: Scores
    seconds: float
    parameters: int
    epochs: int
    stages: tuple[StageResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return {
            "name": self.name,
            "scores": self.scores.to_dict(),
            "seconds": self.seconds,
            "parameters": self.parameters,
            "epochs": self.epochs,
            "stages": [stage.to_dict() for stage in self.stages],
        }


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
            "mean": _number(self.mean),
            "stderr": None if stderr is None else _number(stderr),
            "values": [_number(v) for v in self.values],
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
        """Return metrics and costs over seeds, and per seed the scores by task, JSON-ready."""
        return {
            "metrics": {metric: summary.to_dict() for metric, summary in self.metrics.items()},
            "seconds": self.seconds.to_dict(),
            "parameters": self.parameters.to_dict(),
            "epochs": self.epochs.to_dict(),
            "scores": [result.scores.to_dict() for result in self.results],
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

    def to_text(self, metric: str = "balanced_accuracy") -> str:
        """Return the views as aligned text tables, `metric` first; ties with each view's best are marked ``~``."""
        from pymtg.trainers._tables import comparison_text

        return comparison_text(self, metric)

    def to_markdown(self, metric: str = "balanced_accuracy") -> str:
        """Return the views as Markdown tables, as :meth:`to_text`."""
        from pymtg.trainers._tables import comparison_markdown

        return comparison_markdown(self, metric)


def _number(value: float) -> float | None:
    """JSON has no NaN: an undefined figure becomes null."""
    return float(value) if math.isfinite(value) else None
