"""The options of runs that last: checkpoints to go on from, a log of the epochs, TensorBoard, a profile."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch

from pymtg.errors import FileFormatError, InvalidArgumentError, InvalidTypeError
from pymtg.integrations.tensorboard import check_installed
from pymtg.trainers._agreement import RankedAgreement
from pymtg.trainers._board import Board
from pymtg.trainers._checkpoints import CheckpointFolder, DamagedFileError, Position
from pymtg.trainers._described import described_config, differences
from pymtg.trainers._epoch_log import EpochLog
from pymtg.trainers._errors import CheckpointWarning
from pymtg.trainers._interval import Interval
from pymtg.trainers._keeper import FileKeeper, Keeper
from pymtg.trainers._profile import profiling
from pymtg.trainers._shared_state import RankedFolder, check_alike, shared
from pymtg.trainers._stages import Setting
from pymtg.trainers._stopping import StopRequest, attended
from pymtg.trainers.config import check_int

__all__ = ["LongRun"]

_Start: TypeAlias = tuple[Position, list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class LongRun:
    """Where to keep checkpoints and when, and where to log and to profile; None for not."""

    checkpoint_dir: Path | None
    interval: Interval
    keep: int
    log: Path | None
    tensorboard: Path | None = None
    profile: Path | None = None

    @classmethod
    def checked(
        cls,
        checkpoint_dir: Any,
        checkpoint_every: Any,
        checkpoint_keep: Any,
        log: Any,
        tensorboard: Any = None,
        profile: Any = None,
    ) -> LongRun:
        """Check every option."""
        if _path("tensorboard", tensorboard) is not None:
            check_installed("tensorboard")
        return cls(
            checkpoint_dir=_path("checkpoint_dir", checkpoint_dir),
            interval=Interval.of(checkpoint_every),
            keep=check_int("checkpoint_keep", checkpoint_keep, 1),
            log=_path("log", log),
            tensorboard=_path("tensorboard", tensorboard),
            profile=_path("profile", profile),
        )

    @contextmanager
    def opened(self, setting: Setting, method: str, options: dict[str, Any], resume: bool) -> Iterator[Setting]:
        """Yield the setting with a keeper, which restores the newest good checkpoint first if `resume` says so."""
        if not isinstance(resume, bool):
            raise InvalidTypeError(f"resume must be True or False; got {resume!r}")
        ranks = setting.ranks
        leads = ranks is None or ranks.leads
        with ExitStack() as stack:
            if ranks is not None:
                stack.enter_context(attended())
            keeper = self._keeper(setting, method, options, resume)
            setting = dataclasses.replace(setting, keeper=keeper)
            try:
                with ExitStack() as files:
                    files.enter_context(profiling(self.profile, setting.config.torch_device))
                    if self.log is not None and leads:
                        log = EpochLog(self.log, keep=keeper.epochs_done if resume else 0)
                        setting.reporter.log = files.enter_context(log)
                    if self.tensorboard is not None and leads:
                        setting.reporter.board = files.enter_context(Board(self.tensorboard, setting.layout))
                    yield setting
                if ranks is not None:
                    keeper.end_if_asked()
            except KeyboardInterrupt as stop:
                if ranks is not None and not (isinstance(stop, StopRequest) and stop.agreed):
                    raise  # the other ranks do not know of it
                if isinstance(keeper, FileKeeper) and keeper.save_finished() and isinstance(stop, StopRequest):
                    stop.saved = str(keeper.folder.directory)
                raise

    def _keeper(self, setting: Setting, method: str, options: dict[str, Any], resume: bool) -> Keeper:
        ranks = setting.ranks
        agreement = None if ranks is None else RankedAgreement(ranks)
        own = {} if ranks is None and self.checkpoint_dir is None else _described_run(setting, method, options)
        if ranks is not None:
            check_alike(ranks, own)
        if self.checkpoint_dir is None:
            if resume:
                raise InvalidArgumentError("resume needs a checkpoint_dir to go on from; got checkpoint_dir=None")
            return Keeper(agreement)
        directory = self.checkpoint_dir
        if ranks is None:
            start, folder = self._start(directory, own, resume), CheckpointFolder(directory)
        else:
            start = shared(ranks, ranks.first(lambda: self._start(directory, own, resume)))
            folder = RankedFolder(directory, ranks)
        return FileKeeper(folder, self.interval, self.keep, own, start, agreement)

    def _start(self, directory: Path, own: dict[str, Any], resume: bool) -> _Start | None:
        """Return where to go on from: None for the beginning."""
        folder = CheckpointFolder(directory)
        found = folder.positions()
        if found and not resume:
            raise InvalidArgumentError(
                "checkpoint_dir must hold no checkpoints unless resume=True goes on from them; "
                f"got {folder.directory} with {len(found)}"
            )
        folder.remove_left_overs()
        return _newest_good(folder, own) if found else None


def _path(argument: str, value: Any) -> Path | None:
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise InvalidTypeError(f"{argument} must be a path or None; got {value!r}")
    if value == "":  # which would be the current directory
        raise InvalidArgumentError(f"{argument} must be a path or None; got ''")
    return None if value is None else Path(value)


def _described_run(setting: Setting, method: str, options: dict[str, Any]) -> dict[str, Any]:
    several = {} if setting.ranks is None else {"ranks": setting.ranks.world}
    return several | {
        "method": method,
        "layout": setting.layout.to_dict(),
        "options": {**described_config(setting.config), **options, "seed": setting.seed},
        "data": {
            "train": setting.train.describe(),
            "val": None if setting.val is None else setting.val.describe(),
        },
        "torch": str(torch.__version__),
    }


def _newest_good(folder: CheckpointFolder, own: dict[str, Any]) -> _Start:
    """Return the furthest position that can be gone on from, and its states; say which ones cannot."""
    stages: dict[int, dict[str, Any]] = {}
    problems = []
    for position in folder.positions():
        try:
            states = _states(folder, position, stages, own)
        except DamagedFileError as error:
            problems.append(str(error))
            continue
        if problems:
            _warn(f"{'; '.join(problems)}; going on from {folder.file(position).name}")
            _make_way(folder, position)
        return position, states
    raise FileFormatError(f"{folder.directory} holds no good checkpoint: {'; '.join(problems)}")


def _states(
    folder: CheckpointFolder, position: Position, stages: dict[int, dict[str, Any]], own: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the states of the finished stages before a position and of the one at work there."""
    at_work = [] if position[1:] == (0, 0) else [_state(folder, position, own)]
    for stage in range(position[0]):
        if stage not in stages:
            stages[stage] = _state(folder, (stage + 1, 0, 0), own)
    return [stages[stage] for stage in range(position[0])] + at_work


def _state(folder: CheckpointFolder, position: Position, own: dict[str, Any]) -> dict[str, Any]:
    read = folder.read(position)
    there, here = dict(read["run"]), dict(own)
    versions = there.pop("torch"), here.pop("torch")
    ranks = there.pop("ranks", 1), here.pop("ranks", 1)
    _check_same(there, here, folder.file(position))
    if ranks[0] != ranks[1]:
        written = f"{folder.file(position)} was written by a run of ranks: {ranks[0]}"
        _warn(f"{written}, this has {ranks[1]}: results are the same but for rounding and noise")
    if versions[0] != versions[1]:
        written = f"{folder.file(position)} was written with torch {versions[0]}"
        _warn(f"{written}, this is {versions[1]}: results may differ")
    state: dict[str, Any] = read["state"]
    return state


def _check_same(there: dict[str, Any], here: dict[str, Any], path: Path) -> None:
    """Raise InvalidArgumentError, saying what differs, unless the two descriptions are of one run."""
    if there["layout"] != here["layout"] and there["method"] == here["method"]:
        found = [f"its layout ({_tasks(there['layout'])} there, {_tasks(here['layout'])} here)"]
    else:
        found = differences(there, here)
    if found:
        more = f" and {len(found) - 6} more" if len(found) > 6 else ""
        raise InvalidArgumentError(f"resume must continue the same run; {path} differs in {', '.join(found[:6])}{more}")


def _tasks(layout: dict[str, Any]) -> str:
    names, counts = layout["names"], layout["num_classes"]
    shown = ", ".join(f"{name}: {count}" for name, count in list(zip(names, counts, strict=True))[:3])
    return f"{len(names)} tasks, {shown}{', ...' if len(names) > 3 else ''}"


def _make_way(folder: CheckpointFolder, position: Position) -> None:
    """Take what is beyond a position away, damaged files under another name."""
    for later in folder.positions():
        if later > position:
            try:
                folder.read(later)
            except FileFormatError:
                folder.set_aside(later)
    folder.forget_after(position)


def _warn(message: str) -> None:
    warnings.warn(message, CheckpointWarning, stacklevel=2)
