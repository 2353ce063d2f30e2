"""One progress bar for a whole run: rich where it is installed and stderr is a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pymtg._ranks import Ranks
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.trainers.results import EpochRecord

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from pymtg.datamap import DataMap
    from pymtg.groups import TaskGroups
    from pymtg.trainers._board import Board
    from pymtg.trainers._epoch_log import EpochLog

__all__ = ["Reporter", "reporting"]

_LATEST = 20  # epochs whose mean time is taken for that of those to come


class Reporter:
    """Counts epochs on a bar and in a log, where there are any."""

    def __init__(self, bar: Progress | None = None, line: TaskID | None = None) -> None:
        self._bar, self._line, self._total, self._done = bar, line, 0, 0
        self.prefix = ""
        self.log: EpochLog | None = None
        self.board: Board | None = None

    def expect(self, epochs: int) -> None:
        """Add epochs to the bar's length."""
        self._total += epochs
        if self._bar is not None and self._line is not None:
            self._bar.update(self._line, total=self._total)

    def restored(self, stage: str, epochs: int) -> None:
        """Count epochs that another process has finished."""
        self._done += epochs
        if self._bar is not None and self._line is not None:
            self._bar.update(self._line, completed=self._done, description=f"{self.prefix}{stage}")

    def epoch(
        self,
        stage: str,
        history: Sequence[EpochRecord],
        epochs: int,
        note: str = "",
        more: dict[str, Any] | None = None,
    ) -> None:
        """Count one finished epoch, the last of `history`.

        `note` stands behind its loss on the bar; `more` are further figures for the log.
        """
        self._done += 1
        record = history[-1]
        if self._bar is not None and self._line is not None:
            loss = f"loss {record.loss:.4g}" + (f", {note}" if note else "")
            self._bar.update(self._line, advance=1, description=f"{self.prefix}{stage}", loss=loss)
        if self.log is not None:
            latest = [past.seconds for past in history[-_LATEST:]]
            left = max(self._total - self._done, 0) * sum(latest) / len(latest)
            self.log.write(stage, record, epochs, left, more)
        if self.board is not None:
            self.board.write(stage, record, epochs, more)

    def found(self, groups: TaskGroups, data_map: DataMap | None) -> None:
        """Tell what the run came to."""
        if self.board is not None:
            self.board.finish(groups, data_map)


@contextmanager
def reporting(progress: bool | None, ranks: Ranks | None = None) -> Iterator[Reporter]:
    """Yield a reporter: with a bar if `progress` is True, or None and stderr is a terminal; of ranks, on the first."""
    if progress is not None and not isinstance(progress, bool):
        raise InvalidTypeError(f"progress must be True, False or None; got {progress!r}")
    installed = find_spec("rich") is not None
    if progress and not installed:
        raise InvalidArgumentError("progress=True needs rich, which is not installed; pass None or install pymtg[cli]")
    silent = progress is False or (ranks is not None and not ranks.leads)
    if not installed or silent or (progress is None and not _on_terminal()):
        yield Reporter()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, *times, console=Console(stderr=True)) as bar:
        yield Reporter(bar, bar.add_task("training", total=None, loss=""))


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()  # None where the process has none
