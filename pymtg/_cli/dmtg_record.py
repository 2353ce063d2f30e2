"""A finished DMTG run as files: metrics.json, groups.json, the pruned model, the pictures and the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pymtg._cli.record import RunRecord, described_data, learning_curves, shown_stage, stage_entry
from pymtg._cli.reference import Reference
from pymtg._counting import counted
from pymtg._files import staged
from pymtg.metrics import normalized_gain, total_error
from pymtg.nets import GroupedNet, save_grouped
from pymtg.report import (
    DMTG_WORDING,
    Curve,
    GroupTable,
    Report,
    save_assignment,
    save_data_map,
    save_html,
    save_json,
)
from pymtg.trainers._monitor import monitor_name

if TYPE_CHECKING:
    from pymtg.data import TaskData
    from pymtg.datamap import DataMap
    from pymtg.groups import TaskGroups
    from pymtg.trainers.dmtg import DMTGTrainer
    from pymtg.trainers.results import DMTGResult

__all__ = ["DMTGRecord"]


@dataclass(frozen=True)
class DMTGRecord:
    """Everything that is kept of a run; `history` [E + 1, T, K] are the probabilities of the branches."""

    run: RunRecord
    result: DMTGResult
    history: npt.NDArray[np.float64]
    model: GroupedNet
    data_map: DataMap | None
    reference: Reference | None

    @classmethod
    def of(
        cls,
        trainer: DMTGTrainer,
        tasks: TaskData,
        spec: str,
        command: str,
        settings: dict[str, Any],
        reference: Reference | None,
    ) -> DMTGRecord:
        """Score a fitted trainer on the test set and describe its run."""
        result = trainer.result_
        run = RunRecord(
            command=command,
            data=described_data(tasks, spec),
            settings=settings,
            seed=result.seed,
            monitor=monitor_name(trainer.config.monitor, tasks.layout).replace("_", " "),
            scores=trainer.evaluate(tasks.test),
            group_table=_table(result.groups),
        )
        return cls(
            run=run,
            result=result,
            history=trainer.assignment_history_,
            model=trainer.model_,
            data_map=trainer.data_map_,
            reference=reference,
        )

    def save(self, out: Path) -> None:
        """Write all files, the figures first: should a picture fail, they are left in a directory of their own."""
        table = self.run.group_table
        with staged(out) as stage:
            save_json(stage / "metrics.json", self.metrics())
            save_json(stage / "groups.json", self.result.groups.to_dict())
            save_grouped(stage / "model.safetensors", self.model)
            pictures = {}
            if self.data_map is not None:
                self.data_map.save(stage / "data_map.safetensors")
                pictures["data_map"] = save_data_map(stage / "data_map.png", self.data_map, table)
            pictures["assignment"] = save_assignment(
                stage / "assignment.png",
                self.history,
                table.names,
                table.labels,
                temperatures=self.result.temperatures,
            )
            save_html(stage / "report.html", self._page(pictures))

    def metrics(self) -> dict[str, Any]:
        """Return what metrics.json holds."""
        result = self.result
        parameters = {"dmtg": result.parameters, "unpruned": result.parameters_before_pruning}
        found = self.run.metrics([stage_entry(stage) for stage in result.stages], parameters)
        found["branches_used"] = len(self.model.branches)
        found["branches_dropped"] = result.dropped
        found["entropy"] = result.entropies
        found["temperature"] = result.temperatures
        found["tasks_moved"] = result.moved
        errors = {method: total_error(scores) for method, scores in self.run.scores.items()}
        found["total_error"] = {method: error.to_dict() for method, error in errors.items() if error.defined}
        if self.reference is not None:
            gains = {m: normalized_gain(s, self.reference.scores).to_dict() for m, s in self.run.scores.items()}
            found["normalized_gain"] = gains
            found["reference"] = {"source": self.reference.source, "method": self.reference.method}
        return found

    def figures(self) -> list[str]:
        """Return lines for the terminal: errors, gain, and what pruning left."""
        lines = []
        for method, scores in self.run.scores.items():
            error = total_error(scores)
            if error.defined:
                lines.append(f"total error of {method}: {error.total:.2f} % over {counted(error.defined, 'task')}")
            if self.reference is not None:
                gain = normalized_gain(scores, self.reference.scores)
                against = f"{self.reference.method} of {self.reference.source}"
                lines.append(f"normalized gain of {method} over {against}: {gain.mean:+.2f} %")
        kept, whole = self.result.parameters, self.result.parameters_before_pruning
        branches = counted(self.result.num_branches, "branch", "branches")
        lines.append(f"pruned: {len(self.model.branches)} of {branches}, {kept:,} of {whole:,} parameters")
        return lines

    def _page(self, pictures: Mapping[str, Path]) -> Report:
        result = self.result
        stages = [*map(shown_stage, result.stages)]
        curves = [
            *learning_curves(result.stages, self.run.monitor),
            Curve("entropy of the assignment", "", result.entropies, first=0),
            Curve("tasks whose likeliest branch changed", "", result.moved[1:]),
        ]
        if len(set(result.temperatures)) > 1:
            curves.append(Curve("temperature", "", result.temperatures, first=0))
        return self.run.page(
            "DMTG", stages, curves, **pictures, model=self._left(), wording=DMTG_WORDING, baseline="none"
        )

    def _left(self) -> dict[str, object]:
        left: dict[str, object] = {
            "branches": self._branches(),
            "parameters": self.result.parameters,
            "parameters before pruning": self.result.parameters_before_pruning,
        }
        if self.result.dropped:
            dropped = [f"{branch} (after epoch {epoch})" for branch, epoch in self.result.dropped.items()]
            left["branches dropped on the way"] = ", ".join(dropped)
        for method, scores in self.run.scores.items():
            if total_error(scores).defined:
                left[f"total error of {method}, %"] = total_error(scores).total
            if self.reference is not None:
                left[f"normalized gain of {method}, %"] = normalized_gain(scores, self.reference.scores).mean
                left["over"] = f"{self.reference.method} of {self.reference.source}"  # a value: keys lose underscores
        return left

    def _branches(self) -> str:
        return f"{len(self.model.branches)} of {self.result.num_branches}"


def _table(groups: TaskGroups) -> GroupTable:
    labels = [int(label) for label in groups.labels]
    least = float(groups.memberships[np.arange(len(labels)), labels].min())
    return GroupTable(
        names=groups.names,
        memberships=groups.memberships,
        labels=labels,
        quality={**groups.quality, "least_sure_choice": least},
    )
