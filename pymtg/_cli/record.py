"""What every finished training run leaves behind: the figures, the page, and the words in which a run is described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pymtg._cli.environment import machine, versions
from pymtg.report import Curve, GroupTable, Report, Stage

if TYPE_CHECKING:
    from pymtg.data import TaskData
    from pymtg.metrics import Scores
    from pymtg.trainers.results import StageResult

__all__ = ["RunRecord", "described_data", "learning_curves", "shown_stage", "stage_entry"]


@dataclass(frozen=True)
class RunRecord:
    """What is kept of a run of any method. `monitor` is the name of the validation score."""

    command: str
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    seed: int
    monitor: str
    scores: Mapping[str, Scores]
    group_table: GroupTable

    def metrics(self, stages: Sequence[Mapping[str, Any]], parameters: Mapping[str, int]) -> dict[str, Any]:
        """Return what metrics.json holds; a method may add to it."""
        return {
            "command": self.command,
            "data": self.data,
            "settings": self.settings,
            "seed": self.seed,
            "scores": {method: scores.to_dict() for method, scores in self.scores.items()},
            "stages": stages,
            "seconds": sum(stage["seconds"] for stage in stages),
            "parameters": parameters,
            "num_groups": self.group_table.num_groups,
            "versions": versions(),
            "machine": machine(),
        }

    def page(self, method: str, stages: Sequence[Stage], curves: Sequence[Curve], **more: Any) -> Report:
        """Return what the page shows; `more` are pictures and other parts of :class:`pymtg.report.Report`."""
        return Report(
            title=f"{method} on {self.data['name']}",
            command=self.command,
            settings={key: _shown(value) for key, value in self.settings.items()},
            data={key: _shown(value) for key, value in self.data.items()},
            versions=versions(),
            machine={key: _shown(value) for key, value in machine().items()},
            scores=self.scores,
            groups=self.group_table,
            stages=stages,
            curves=curves,
            **more,
        )


def described_data(tasks: TaskData, spec: str) -> dict[str, Any]:
    """Return name and sizes of a data set, and by what its regression targets were standardised."""
    sizes = {f"{part}_samples": len(dataset) for part, dataset in tasks.parts.items()}  # type: ignore[arg-type]
    found = {"name": tasks.name, "spec": spec, "tasks": tasks.num_tasks, "features": tasks.num_features, **sizes}
    figures = {"target_mean": tasks.target_mean, "target_scale": tasks.target_scale}
    return found | {name: list(values) for name, values in figures.items() if values is not None}


def stage_entry(stage: StageResult) -> dict[str, Any]:
    """Return a stage without the tasks' curves, which would be most of the file where tasks are many."""
    return {
        "name": stage.name,
        "epochs": stage.epochs,
        "best_epoch": stage.best_epoch,
        "seconds": stage.seconds,
        "parameters": stage.parameters,
        "loss": [record.loss for record in stage.history],
        "val_score": [record.val_score for record in stage.history if record.val_score is not None],
    }


def shown_stage(stage: StageResult) -> Stage:
    """Return a stage as the page shows it: where an earlier epoch than the last was kept, its name says which."""
    kept = "" if stage.best_epoch is None else f" (epoch {stage.best_epoch} of {stage.epochs} kept)"
    return Stage(stage.name + kept, stage.seconds, stage.parameters)


def learning_curves(stages: Sequence[StageResult], monitor: str) -> list[Curve]:
    """Return every stage's training loss, and its validation scores where it has any."""
    curves = [Curve("training loss", stage.name, [record.loss for record in stage.history]) for stage in stages]
    for stage in stages:
        scores = [record.val_score for record in stage.history if record.val_score is not None]
        if scores:
            curves.append(Curve(f"validation {monitor}", stage.name, scores))
    return curves


def _shown(value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        return value
    return ", ".join(f"{one:.5g}" if isinstance(one, float) else str(one) for one in value)
