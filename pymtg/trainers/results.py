"""What trainers return: frozen records, JSON-ready through ``to_dict``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymtg.datamap import DataMap
    from pymtg.groups import TaskGroups
    from pymtg.metrics import Scores

__all__ = ["DMTGResult", "EpochRecord", "MethodResult", "STGResult", "StageResult"]


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
            "val_task_scores": None if self.val_task_scores is None else [json_number(v) for v in self.val_task_scores],
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
    """What :meth:`pymtg.STGTrainer.fit` found and what it took.

    ``together`` tells whether the specialised networks were trained at once: their seconds are then equal shares.
    """

    joint: StageResult
    specialised: tuple[StageResult, ...]
    grouping_seconds: float
    groups: TaskGroups
    data_map: DataMap
    snapshot_epochs: tuple[int, ...]
    seed: int
    together: bool = False

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
            "together": self.together,
            "stages": [stage.to_dict() for stage in self.stages],
            "groups": self.groups.to_dict(),
        }


@dataclass(frozen=True)
class DMTGResult:
    """What :meth:`pymtg.DMTGTrainer.fit` found and what it took.

    ``temperatures``, ``entropies`` and ``moved`` have an entry before the first epoch and one after each: the
    temperature, the entropy term, and how many tasks' most probable branch is another than an entry before.
    ``dropped`` maps a branch's number to the epoch after which it was dropped; with `keep_best` the network kept may
    be of an earlier epoch and have that branch. ``parameters_before_pruning`` counts all branches, dropped ones too,
    and theta.
    """

    stages: tuple[StageResult, ...]
    groups: TaskGroups
    temperatures: tuple[float, ...]
    entropies: tuple[float, ...]
    moved: tuple[int, ...]
    dropped: dict[int, int]
    parameters_before_pruning: int
    parameters: int
    num_branches: int
    seed: int

    @property
    def seconds(self) -> float:
        """Wall seconds of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def epochs(self) -> int:
        """Passes over the data, of one network or of K branches at once."""
        return sum(stage.epochs for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""
        return {
            "seed": self.seed,
            "seconds": self.seconds,
            "num_branches": self.num_branches,
            "parameters": self.parameters,
            "parameters_before_pruning": self.parameters_before_pruning,
            "epochs": self.epochs,
            "temperatures": list(self.temperatures),
            "entropies": list(self.entropies),
            "moved": list(self.moved),
            "dropped": {str(branch): epoch for branch, epoch in self.dropped.items()},
            "stages": [stage.to_dict() for stage in self.stages],
            "groups": self.groups.to_dict(),
        }


@dataclass(frozen=True)
class MethodResult:
    """One method's scores on the test set with one seed, and its cost.

    ``seconds`` is the training time of every network the method needs, also of those that another method trained
    for it; ``parameters`` those of the networks it predicts with; ``epochs`` the sum over networks. ``groups`` are
    the tasks' groups, drawn ones too; None for a method that has none, and of :func:`pymtg.trainers.random_groups`.
    """

    name: str
    scores: Scores
    seconds: float
    parameters: int
    epochs: int
    stages: tuple[StageResult, ...]
    groups: TaskGroups | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return {
            "name": self.name,
            "scores": self.scores.to_dict(),
            "seconds": self.seconds,
            "parameters": self.parameters,
            "epochs": self.epochs,
            "stages": [stage.to_dict() for stage in self.stages],
            "groups": None if self.groups is None else self.groups.to_dict(),
        }


def json_number(value: float) -> float | None:
    """JSON has no NaN: an undefined figure becomes null."""
    return float(value) if math.isfinite(value) else None
