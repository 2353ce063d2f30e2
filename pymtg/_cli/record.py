"""A finished STG run as files: metrics.json, groups.json, the data map, the pictures and the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pymtg._cli.environment import machine, versions
from pymtg._cli.grouping import group_table
from pymtg._files import staged
from pymtg.report import (
    Curve,
    GroupTable,
    Report,
    Stage,
    save_data_map,
    save_html,
    save_json,
    save_memberships,
)

if TYPE_CHECKING:
    from pymtg.data import TaskData
    from pymtg.metrics import Scores
    from pymtg.trainers import STGTrainer
    from pymtg.trainers.results import StageResult, STGResult

__all__ = ["RunRecord"]


@dataclass(frozen=True)
class RunRecord:
    """Everything that is kept of a run."""

    command: str
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    monitor: str
    result: STGResult
    scores: Mapping[str, Scores]
    group_table: GroupTable

    @classmethod
    def of(cls, trainer: STGTrainer, tasks: TaskData, spec: str, command: str, settings: dict[str, Any]) -> RunRecord:
        """Score a fitted trainer on the test set and describe its run."""
        sizes = {f"{part}_samples": len(dataset) for part, dataset in tasks.parts.items()}  # type: ignore[arg-type]
        result = trainer.result_
        return cls(
            command=command,
            data={"name": tasks.name, "spec": spec, "tasks": tasks.num_tasks, "features": tasks.num_features, **sizes},
            settings={
                **settings,
                "snapshot_epochs": list(result.snapshot_epochs),
                "specialised_epochs": result.specialised[0].epochs,
            },
            monitor=trainer.config.monitor.replace("_", " "),
            result=result,
            scores=trainer.evaluate(tasks.test),
            group_table=group_table(result.groups),
        )

    def save(self, out: Path) -> None:
        """Write all files, the figures first: should a picture fail, they are left in a directory of their own."""
        with staged(out) as stage:
            save_json(stage / "metrics.json", self.metrics())
            save_json(stage / "groups.json", self.result.groups.to_dict())
            self.result.data_map.save(stage / "data_map.safetensors")
            data_map = save_data_map(stage / "data_map.png", self.result.data_map, self.group_table)
            memberships = save_memberships(stage / "memberships.png", self.group_table)
            save_html(stage / "report.html", self.report(data_map, memberships))

    def metrics(self) -> dict[str, Any]:
        """Return what metrics.json holds."""
        result = self.result
        grouping = {"name": "grouping", "epochs": 0, "seconds": result.grouping_seconds, "parameters": 0}
        stages = [_stage(result.joint), grouping, *map(_stage, result.specialised)]
        return {
            "command": self.command,
            "data": self.data,
            "settings": self.settings,
            "seed": result.seed,
            "scores": {method: scores.to_dict() for method, scores in self.scores.items()},
            "stages": stages,
            "seconds": result.seconds,
            "parameters": {"stg": result.parameters, "mtl": result.joint.parameters},
            "num_groups": self.group_table.num_groups,
            "versions": versions(),
            "machine": machine(),
        }

    def report(self, data_map: Path, memberships: Path) -> Report:
        """Return what the page shows."""
        stages = [Stage(stage.name, stage.seconds, stage.parameters) for stage in self.result.stages]
        stages.insert(1, Stage("grouping", self.result.grouping_seconds))
        return Report(
            title=f"STG on {self.data['name']}",
            command=self.command,
            settings={key: _shown(value) for key, value in self.settings.items()},
            data={key: _shown(value) for key, value in self.data.items()},
            versions=versions(),
            machine={key: _shown(value) for key, value in machine().items()},
            scores=self.scores,
            groups=self.group_table,
            stages=stages,
            curves=_curves(self.result, self.monitor),
            data_map=data_map,
            memberships=memberships,
        )


def _stage(stage: StageResult) -> dict[str, Any]:
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


def _curves(result: STGResult, monitor: str) -> list[Curve]:
    curves = [Curve("training loss", stage.name, [record.loss for record in stage.history]) for stage in result.stages]
    for stage in result.stages:
        scores = [record.val_score for record in stage.history if record.val_score is not None]
        if scores:
            curves.append(Curve(f"validation {monitor}", stage.name, scores))
    return curves


def _shown(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
