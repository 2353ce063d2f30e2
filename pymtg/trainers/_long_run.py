"""The options of runs that last: checkpoints to go on from, a log of the epochs, TensorBoard, a profile."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.integrations.tensorboard import check_installed
from pymtg.trainers._agreement import RankedAgreement
from pymtg.trainers._board import Board
from pymtg.trainers._checkpoints import CheckpointFolder
from pymtg.trainers._epoch_log import EpochLog
from pymtg.trainers._interval import Interval
from pymtg.trainers._keeper import FileKeeper, Keeper
from pymtg.trainers._profile import profiling
from pymtg.trainers._resuming import Start, check_empty, described_run, newest_good
from pymtg.trainers._shared_state import RankedFolder, check_alike, shared
from pymtg.trainers._stages import Setting
from pymtg.trainers._stopping import StopRequest, attended
from pymtg.trainers.config import check_int

__all__ = ["LongRun", "checked_path"]


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
        if checked_path("tensorboard", tensorboard) is not None:
            check_installed("tensorboard")
        return cls(
            checkpoint_dir=checked_path("checkpoint_dir", checkpoint_dir),
            interval=Interval.of(checkpoint_every),
            keep=check_int("checkpoint_keep", checkpoint_keep, 1),
            log=checked_path("log", log),
            tensorboard=checked_path("tensorboard", tensorboard),
            profile=checked_path("profile", profile),
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
        own = {} if ranks is None and self.checkpoint_dir is None else described_run(setting, method, options)
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

    def _start(self, directory: Path, own: dict[str, Any], resume: bool) -> Start | None:
        """Return where to go on from: None for the beginning."""
        folder = CheckpointFolder(directory)
        found = folder.positions()
        check_empty(folder, resume)
        if folder.count() > len(found):
            raise InvalidArgumentError(
                f"resume must continue the same run; {folder.directory} holds the checkpoints of a comparison"
            )
        folder.remove_left_overs()
        return newest_good(folder, own) if found else None


def checked_path(argument: str, value: Any) -> Path | None:
    """Return an option that names a place; typed errors for what is neither a path nor None."""
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise InvalidTypeError(f"{argument} must be a path or None; got {value!r}")
    if value == "":  # which would be the current directory
        raise InvalidArgumentError(f"{argument} must be a path or None; got ''")
    return None if value is None else Path(value)
