"""Where a run's time goes: every span timed on the host, and a bounded part of them traced by torch's profiler.

A trace of a whole run would be gigabytes, so it is taken in windows: a stage's first steps, and beyond these the first
time that something is done in the stage (its first validation, its first snapshot). The times are those of all.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pymtg._ranges import watched
from pymtg.errors import InvalidArgumentError
from pymtg.trainers._profile_files import OUTSIDE, REST, Operator, Profile, Spent, save_profile

__all__ = ["Profiler", "profiling"]

STEPS = 12
"""Batches in a window of the trace."""
WINDOWS = 64
"""Windows in a trace."""


@contextmanager
def profiling(directory: Path | None, device: torch.device) -> Iterator[None]:
    """Profile what happens inside the block and write the files into a directory; do nothing where it is None.

    However the block ends, the files tell of what there was of it.

    Raises
    ------
    InvalidArgumentError
        If torch's profiler is at work already: there is one a process.
    OSError
        If the files cannot be written.
    """
    if directory is None:
        yield
        return
    if torch._C._autograd._profiler_enabled():
        raise InvalidArgumentError("profile must be None while another torch profiler is at work; got a directory")
    directory = _own_directory(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=directory, prefix=".windows-") as windows:
        profiler = Profiler(Path(windows), device)
        try:
            with watched(profiler):
                yield
        finally:
            save_profile(directory, profiler.finish())


def _own_directory(directory: Path) -> Path:
    """Return the directory, or one of this rank's in it where there are several."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        return directory / f"rank{distributed.get_rank()}"
    return directory


@dataclass
class _Frame:
    """An open span."""

    name: str
    start: float
    inner: float = 0.0  # seconds of the spans within
    range: Any = None  # its record_function, while a window is open


@dataclass
class _Window:
    """An open window of the trace."""

    profile: Any
    depth: int  # it closes with the span at this depth, if not before
    steps: int = 0


class Profiler:
    """Times spans, and opens and closes the windows in which they are traced; a watch (:mod:`pymtg._ranges`).

    Parameters
    ----------
    directory
        For the windows' traces.
    device
        Where the run's networks are.
    """

    def __init__(self, directory: Path, device: torch.device) -> None:
        self.directory = directory
        self.found = Profile(str(device))
        self._on_cuda = device.type == "cuda"
        self._stage = ""
        self._frames: list[_Frame] = []
        self._window: _Window | None = None
        self._traced: set[tuple[str, str]] = set()
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or each window is announced on stderr
        self._started().stop()  # the first one of a process takes seconds to start
        self._began = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Surround a stage."""
        self._stage = name
        try:
            with self._opened(name, REST):
                yield
        finally:
            self._stage = ""

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Surround a span; outside the stages it is timed under no stage's name."""
        with self._opened(name, name):
            yield

    def step(self) -> None:
        """Count a batch; close the window that has seen enough of them."""
        if self._window is not None:
            self._window.steps += 1
            if self._window.steps > STEPS:
                self._apart(self._close_window)

    def finish(self) -> Profile:
        """Return what was measured; what no span had is the time outside the stages."""
        self._apart(self._close_window)
        self.found.seconds = time.perf_counter() - self._began - self.found.own
        known = sum(spent.seconds for spent in self.found.spans.values())
        self._add(("", OUTSIDE), self.found.seconds - known)
        return self.found

    @contextmanager
    def _opened(self, name: str, key: str) -> Iterator[None]:
        where = (self._stage, key)
        if self._window is None and where not in self._traced and len(self.found.windows) < WINDOWS:
            self._apart(self._open_window)
        frame = _Frame(name, time.perf_counter())
        self._frames.append(frame)
        if self._window is not None:
            self._traced.add(where)
            self._enter(frame)
        try:
            yield
        finally:
            self._leave(frame)
            if self._window is not None and self._window.depth == len(self._frames):
                self._apart(self._close_window)
            self._frames.pop()
            taken = time.perf_counter() - frame.start
            self._add(where, taken - frame.inner)
            if self._frames:
                self._frames[-1].inner += taken

    def _add(self, where: tuple[str, str], seconds: float) -> None:
        spent = self.found.spans.setdefault(where, Spent())
        spent.calls += 1
        spent.seconds += seconds

    def _apart(self, own: Callable[[], None]) -> None:
        """Do work of the profiler's own; its time is not that of the span in which it falls."""
        start = time.perf_counter()
        own()
        taken = time.perf_counter() - start
        self.found.own += taken
        if self._frames:
            self._frames[-1].inner += taken

    def _enter(self, frame: _Frame) -> None:
        frame.range = torch.profiler.record_function(frame.name)
        frame.range.__enter__()
        if self._on_cuda:
            torch.cuda.nvtx.range_push(frame.name)  # type: ignore[no-untyped-call]

    def _leave(self, frame: _Frame) -> None:
        if frame.range is None:
            return
        if self._on_cuda:
            torch.cuda.nvtx.range_pop()  # type: ignore[no-untyped-call]
        frame.range.__exit__(None, None, None)
        frame.range = None

    def _started(self) -> Any:
        kinds = torch.profiler.ProfilerActivity
        profile = torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA] if self._on_cuda else [kinds.CPU])
        with warnings.catch_warnings():
            # Some versions (2.11, say) warn every profile that earlier cycles are lost; these have one cycle each.
            warnings.filterwarnings("ignore", "Warning: Profiler clears events")
            profile.start()
        return profile

    def _open_window(self) -> None:
        self._window = _Window(self._started(), len(self._frames) + 1)
        for frame in self._frames:
            self._enter(frame)

    def _close_window(self) -> None:
        if self._window is None:
            return
        for frame in reversed(self._frames):
            self._leave(frame)
        profile, self._window = self._window.profile, None
        profile.stop()
        path = self.directory / f"{len(self.found.windows):03d}.json"
        profile.export_chrome_trace(os.fspath(path))
        self.found.windows.append(path)
        for one in profile.key_averages():
            kind = self.found.ranges if one.is_user_annotation else self.found.operators
            to = kind.setdefault((self._stage, one.key), Operator())
            to.calls += one.count
            to.cpu += one.self_cpu_time_total
            to.device += one.device_time_total if one.is_user_annotation else one.self_device_time_total
