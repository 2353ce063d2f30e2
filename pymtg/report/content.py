"""What a report is made of: plain records, filled by whoever ran something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pymtg.errors import InvalidArgumentError
from pymtg.metrics import Scores
from pymtg.report.wording import STG_WORDING, Wording

if TYPE_CHECKING:
    from pymtg.groups import TaskGroups

__all__ = ["Curve", "GroupTable", "Report", "Stage"]


@dataclass(frozen=True)
class Stage:
    """Cost of one stage of a run."""

    name: str
    seconds: float
    parameters: int | None = None


@dataclass(frozen=True)
class Curve:
    """One quantity over the epochs of one training; `panel` names the picture it is drawn in.

    `first` is the epoch of the first value, 0 for what is known before training.
    """

    panel: str
    label: str
    values: Sequence[float]
    first: int = 1


@dataclass(frozen=True)
class GroupTable:
    """T tasks and their memberships [T, K] in K groups; `labels` holds each task's group.

    `silhouettes` maps the group counts that were tried to their silhouette, where the count was chosen automatically.
    """

    names: Sequence[str]
    memberships: np.ndarray
    labels: Sequence[int]
    quality: Mapping[str, float | int | str | None] = field(default_factory=dict)
    silhouettes: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = np.shape(self.memberships)
        if len(shape) != 2 or shape[0] != len(self.names) or len(self.labels) != len(self.names):
            raise InvalidArgumentError(
                f"memberships must be [tasks, groups] with a label per task ({len(self.names)} names); "
                f"got shape {shape} and {len(self.labels)} labels"
            )

    @classmethod
    def of(cls, groups: TaskGroups | GroupTable) -> GroupTable:
        """Return task groups as tables and pictures take them; a table as it is."""
        if isinstance(groups, GroupTable):
            return groups
        silhouettes = groups.quality.get("silhouette_scores") or {}
        return cls(
            names=groups.names,
            memberships=groups.memberships,
            labels=groups.labels.tolist(),
            quality={name: value for name, value in groups.quality.items() if name != "silhouette_scores"},
            silhouettes={int(count): float(value) for count, value in silhouettes.items()},
        )

    @property
    def num_groups(self) -> int:
        """K, the number of groups."""
        return int(self.memberships.shape[1])

    def strength(self, task: int) -> float:
        """Return a task's membership in its own group."""
        return float(self.memberships[task, self.labels[task]])

    def order(self) -> list[int]:
        """Return the tasks group by group, the strongest members first."""
        return sorted(range(len(self.names)), key=lambda t: (self.labels[t], -self.strength(t), t))

    def members(self, group: int) -> list[int]:
        """Return the tasks of one group, the strongest first."""
        return [t for t in self.order() if self.labels[t] == group]


@dataclass(frozen=True)
class Report:
    """Everything the HTML page shows. `scores` is keyed by method, in the order of the table's rows.

    What is not given (pictures, curves, `model`: facts about the model that is left) has no place on the page.
    """

    title: str
    command: str
    settings: Mapping[str, object]
    data: Mapping[str, object]
    versions: Mapping[str, object]
    machine: Mapping[str, object]
    scores: Mapping[str, Scores]
    groups: GroupTable
    stages: Sequence[Stage]
    curves: Sequence[Curve] = ()
    data_map: Path | None = None
    memberships: Path | None = None
    assignment: Path | None = None
    model: Mapping[str, object] = field(default_factory=dict)
    baseline: str = "mtl"
    wording: Wording = STG_WORDING
