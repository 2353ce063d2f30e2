"""One progress bar for a whole run: rich where it is installed and stderr is a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pymtg.errors import InvalidArgumentError, InvalidTypeError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Reporter", "reporting"]


class Reporter:
    """Counts epochs on a bar; without a bar, does nothing."""

    def __init__(self, bar: Progress | None = None, line: TaskID | None = None) -> None:
        self._bar, self._line, self._total = bar, line, 0
        self.prefix = ""

    def expect(self, epochs: int) -> None:
        """Add epochs to the bar's length."""
        self._total += epochs
        if self._bar is not None and self._line is not None:
            self._bar.update(self._line, total=self._total)

    def epoch(self, stage: str, loss: float, note: str = "") -> None:
        """Count one finished epoch; `note` stands behind its loss."""
        if self._bar is not None and self._line is not None:
            self._bar.update(
                self._line,
                advance=1,
                description=f"{self.prefix}{stage}",
                loss=f"loss {loss:.4g}" + (f", {note}" if note else ""),
            )


@contextmanager
def reporting(progress: bool | None) -> Iterator[Reporter]:
    """Yield a reporter: with a bar if `progress` is True, or None and stderr is a terminal."""
    if progress is not None and not isinstance(progress, bool):
        raise InvalidTypeError(f"progress must be True, False or None; got {progress!r}")
    installed = find_spec("rich") is not None
    if progress and not installed:
        raise InvalidArgumentError("progress=True needs rich, which is not installed; pass None or install pymtg[cli]")
    if not installed or progress is False or (progress is None and not sys.stderr.isatty()):
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
