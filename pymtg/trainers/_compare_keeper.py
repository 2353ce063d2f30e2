"""What is kept of a comparison that may be stopped: the results of finished seeds, the networks of the one at work."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.metrics import Scores
from pymtg.trainers._checkpoints import CheckpointFolder, DamagedFileError
from pymtg.trainers._compare_seed import Compared
from pymtg.trainers._interval import Interval
from pymtg.trainers._keeper import FileKeeper, Keeper
from pymtg.trainers._long_run import checked_path
from pymtg.trainers._resuming import check_empty, newest_good, state_at, warn
from pymtg.trainers._run_state import stage_of, stage_state
from pymtg.trainers._stopping import StopRequest
from pymtg.trainers.results import MethodResult

__all__ = ["ComparisonKeeper"]

_KEEP = 2  # positions within a network, as the trainers keep by default


class ComparisonKeeper:
    """Keeps a comparison's seeds in a directory, in the manner of :class:`pymtg.STGTrainer`; without one, nothing.

    A finished seed is a stage of it, ``stage-002.safetensors``, and the one at work a run of its own, ``run-003``.
    """

    def __init__(
        self, checkpoint_dir: str | os.PathLike[str] | None, checkpoint_every: int | str, resume: bool
    ) -> None:
        if not isinstance(resume, bool):
            raise InvalidTypeError(f"resume must be True or False; got {resume!r}")
        directory = checked_path("checkpoint_dir", checkpoint_dir)
        self.interval = Interval.of(checkpoint_every)
        self.folder = None if directory is None else CheckpointFolder(directory)
        if self.folder is not None:
            check_empty(self.folder, resume)
            self.folder.remove_left_overs()
        elif resume:
            raise InvalidArgumentError("resume needs a checkpoint_dir to go on from; got checkpoint_dir=None")

    def finished(self, position: int, own: dict[str, Any]) -> list[Compared] | None:
        """Return the results of the seed at a position among the seeds, if it was finished; `own` describes the seed.

        Raises
        ------
        InvalidArgumentError
            If they are of another comparison; says what differs.
        FileFormatError
            If they are of another version.
        """
        if self.folder is None:
            return None
        if position == 0:
            self._check_kind(own)
        place = (position + 1, 0, 0)
        if place not in self.folder.positions():
            return None
        try:
            found = _unpacked(state_at(self.folder, place, own))
        except DamagedFileError as error:
            warn(f"{error}; training this seed again")
            self.folder.set_aside(place)
            return None
        self.folder.run(position).clear()
        return found

    def train(self, position: int, own: dict[str, Any], train: Callable[[Keeper], list[Compared]]) -> list[Compared]:
        """Return the results of a seed that `train` makes, which goes on where it was stopped; keep them."""
        if self.folder is None:
            return train(Keeper())
        work = self.folder.run(position)
        work.remove_left_overs()
        start = newest_good(work, own) if work.positions() else None
        keeper = FileKeeper(work, self.interval, _KEEP, own, start)
        try:
            found = train(keeper)
        except KeyboardInterrupt:
            keeper.save_finished()
            raise
        self.folder.write((position + 1, 0, 0), {"run": own, "state": _packed(found)})
        work.clear()
        return found

    @contextmanager
    def named(self) -> Iterator[None]:
        """Let a signal that ends the block say where there is something to go on from."""
        try:
            yield
        except StopRequest as stop:
            held = self.folder is not None and self.folder.count() > 0
            stop.saved = str(self.folder.directory) if self.folder is not None and held else None
            raise

    def _check_kind(self, own: dict[str, Any]) -> None:
        """Raise a typed error for checkpoints in the midst of a stage: a comparison has these in ``run-...`` only."""
        assert self.folder is not None
        for position in self.folder.positions():
            if position[1:] != (0, 0):
                state_at(self.folder, position, own)


def _packed(results: Sequence[Compared]) -> dict[str, Any]:
    """Return results as nested values; a network that several methods share is there once."""
    stages = {id(stage): stage for _, _, result in results for stage in result.stages}
    numbers = {key: number for number, key in enumerate(stages)}
    return {
        "stages": [stage_state(stage) for stage in stages.values()],
        "results": [
            {
                "view": view,
                "method": method,
                "scores": dataclasses.asdict(result.scores),
                "seconds": result.seconds,
                "parameters": result.parameters,
                "epochs": result.epochs,
                "stages": [numbers[id(stage)] for stage in result.stages],
                "groups": None if result.groups is None else result.groups.to_dict(),
            }
            for view, method, result in results
        ],
    }


def _unpacked(state: dict[str, Any]) -> list[Compared]:
    from pymtg.groups import TaskGroups  # brings scikit-learn along

    stages = [stage_of(stage) for stage in state["stages"]]
    return [
        (
            kept["view"],
            kept["method"],
            MethodResult(
                name=kept["method"],
                scores=Scores(**kept["scores"]),
                seconds=kept["seconds"],
                parameters=kept["parameters"],
                epochs=kept["epochs"],
                stages=tuple(stages[number] for number in kept["stages"]),
                groups=None if kept["groups"] is None else TaskGroups.from_dict(kept["groups"]),
            ),
        )
        for kept in state["results"]
    ]
