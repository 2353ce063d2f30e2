"""A finished STG run as files: metrics.json, groups.json, the model, the data map, the pictures and the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pymtg._cli.ranks import own_rank
from pymtg._cli.record import RunRecord, described_data, learning_curves, shown_stage, stage_entry
from pymtg._files import staged
from pymtg.nets import GroupedNet, save_grouped
from pymtg.report import GroupTable, Report, Stage, save_data_map, save_html, save_json, save_memberships
from pymtg.trainers._monitor import monitor_name

if TYPE_CHECKING:
    from pymtg.data import TaskData
    from pymtg.trainers import STGTrainer
    from pymtg.trainers.results import STGResult

__all__ = ["STGRecord"]


@dataclass(frozen=True)
class STGRecord:
    """Everything that is kept of a run."""

    run: RunRecord
    result: STGResult
    model: GroupedNet

    @classmethod
    def of(cls, trainer: STGTrainer, tasks: TaskData, spec: str, command: str, settings: dict[str, Any]) -> STGRecord:
        """Score a fitted trainer on the test set and describe its run."""
        result = trainer.result_
        run = RunRecord(
            command=command,
            data=described_data(tasks, spec),
            settings={
                **settings,
                "snapshot_epochs": list(result.snapshot_epochs),
                "specialised_epochs": result.specialised[0].epochs,
                "specialise": _form(result, trainer.plan.specialise),
            },
            seed=result.seed,
            monitor=monitor_name(trainer.config.monitor, tasks.layout).replace("_", " "),
            scores=trainer.evaluate(tasks.test),
            group_table=GroupTable.of(result.groups),
        )
        return cls(run, result, trainer.prune())

    def save(self, out: Path) -> None:
        """Write all files, the figures first: should a picture fail, they are left in a directory of their own."""
        with staged(out) as stage:
            save_json(stage / "metrics.json", self.metrics())
            save_json(stage / "groups.json", self.result.groups.to_dict())
            save_grouped(stage / "model.safetensors", self.model)
            self.result.data_map.save(stage / "data_map.safetensors")
            data_map = save_data_map(stage / "data_map.png", self.result.data_map, self.run.group_table)
            memberships = save_memberships(stage / "memberships.png", self.run.group_table)
            save_html(stage / "report.html", self._page(data_map, memberships))

    def metrics(self) -> dict[str, Any]:
        """Return what metrics.json holds."""
        result = self.result
        grouping = {"name": "grouping", "epochs": 0, "seconds": result.grouping_seconds, "parameters": 0}
        stages = [stage_entry(result.joint), grouping, *map(stage_entry, result.specialised)]
        return self.run.metrics(stages, {"stg": result.parameters, "mtl": result.joint.parameters})

    def _page(self, data_map: Path, memberships: Path) -> Report:
        stages = [*map(shown_stage, self.result.stages)]
        stages.insert(1, Stage("grouping", self.result.grouping_seconds))
        curves = learning_curves(self.result.stages, self.run.monitor)
        return self.run.page("STG", stages, curves, data_map=data_map, memberships=memberships)


def _form(result: STGResult, asked: str) -> str:
    """Return how the specialised networks were trained."""
    if result.together:
        return "together"
    spread = own_rank() is not None and len(result.specialised) > 1 and asked in ("auto", "spread")
    return "spread" if spread else "one-by-one"
