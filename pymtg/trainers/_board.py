"""A run's epochs as TensorBoard's scalars, a run of TensorBoard's for every stage."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pymtg._ranges import span
from pymtg.integrations.tensorboard import MOST_TASKS, add_data_map, add_groups
from pymtg.tasks import TaskLayout
from pymtg.trainers.results import EpochRecord

if TYPE_CHECKING:
    from pymtg.datamap import DataMap
    from pymtg.groups import TaskGroups

__all__ = ["Board"]


class Board:
    """Writes event files into ``directory/STAGE``; the steps are the stage's epochs.

    What is there of the epoch written first and of later ones counts no more: TensorBoard leaves it out, so that a
    resumed run has no step twice and a new one none of the old. Every epoch is on the disk before the checkpoint that
    knows it.
    """

    def __init__(self, directory: Path, layout: TaskLayout) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._tasks = layout.names if layout.num_tasks <= MOST_TASKS else ()
        self._writers: dict[str, Any] = {}  # of the stages at work: one, or K that are trained together

    def write(self, stage: str, record: EpochRecord, epochs: int, more: dict[str, Any] | None = None) -> None:
        """Write one of a stage's epochs under the names of the log, tasks under theirs."""
        figures = {"loss": record.loss, "val_score": record.val_score, "seconds": record.seconds, **(more or {})}
        for part, values in (("task_losses", record.task_losses), ("val_task_scores", record.val_task_scores)):
            figures |= {f"{part}/{name}": value for name, value in zip(self._tasks, values or (), strict=False)}
        with span("tensorboard"):
            writer = self._writer_of(stage, record.epoch)
            for tag, value in figures.items():
                if value is not None:
                    writer.add_scalar(tag, value, record.epoch)
            writer.flush()
            if record.epoch == epochs:
                self._close(stage)

    def finish(self, groups: TaskGroups, data_map: DataMap | None) -> None:
        """Write what the run found, as the run ``groups``."""
        with span("tensorboard"):
            writer = self._writer_of("groups", 0)
            add_groups(writer, groups, step=0)
            if data_map is not None:
                add_data_map(writer, data_map, groups, step=0)

    def _writer_of(self, stage: str, first: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        if stage not in self._writers:
            folder = self.directory / stage.replace(" ", "-")
            _wait_for_a_later_name(folder)
            self._writers[stage] = SummaryWriter(str(folder), purge_step=first)
        return self._writers[stage]

    def _close(self, stage: str) -> None:
        writer = self._writers.pop(stage, None)
        if writer is not None:
            writer.close()

    def close(self) -> None:
        """Close all files."""
        for stage in list(self._writers):
            self._close(stage)

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _wait_for_a_later_name(folder: Path) -> None:
    """Let the second pass in which another event file was begun.

    TensorBoard reads a folder's files by name, which has the second and then a count that does not sort ("10" before
    "9"): a file of the same second might be read before the one that it goes on from.
    """
    now = time.time()
    if any(folder.glob(f"events.out.tfevents.{int(now):010d}.*")):
        time.sleep(1 - now % 1)
