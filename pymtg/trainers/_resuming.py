"""Where a run that was stopped can be gone on from: the newest good checkpoint, if it is of the same run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, TypeAlias

import torch

from pymtg._counting import counted
from pymtg.errors import FileFormatError, InvalidArgumentError
from pymtg.trainers._checkpoints import CheckpointFolder, DamagedFileError, Position
from pymtg.trainers._described import described_config, differences
from pymtg.trainers._errors import CheckpointWarning
from pymtg.trainers._stages import Setting

__all__ = ["Start", "check_empty", "described_run", "newest_good", "state_at", "warn"]

Start: TypeAlias = tuple[Position, list[dict[str, Any]]]
"""A position, and the states up to it: a finished stage each, and then the one that was at work, if any."""


def check_empty(folder: CheckpointFolder, resume: bool) -> None:
    """Raise InvalidArgumentError for checkpoints that the call would not go on from."""
    found = 0 if resume else folder.count()
    if found:
        raise InvalidArgumentError(
            "checkpoint_dir must hold no checkpoints unless resume=True goes on from them; "
            f"got {folder.directory} with {found}"
        )


def described_run(setting: Setting, method: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return what a run is, JSON-ready: what goes on from its checkpoints must be the same."""
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


def newest_good(folder: CheckpointFolder, own: dict[str, Any]) -> Start:
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
            warn(f"{'; '.join(problems)}; going on from {folder.file(position).name}")
            _make_way(folder, position)
        return position, states
    raise FileFormatError(f"{folder.directory} holds no good checkpoint: {'; '.join(problems)}")


def _states(
    folder: CheckpointFolder, position: Position, stages: dict[int, dict[str, Any]], own: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the states of the finished stages before a position and of the one at work there."""
    at_work = [] if position[1:] == (0, 0) else [state_at(folder, position, own)]
    for stage in range(position[0]):
        if stage not in stages:
            stages[stage] = state_at(folder, (stage + 1, 0, 0), own)
    return [stages[stage] for stage in range(position[0])] + at_work


def state_at(folder: CheckpointFolder, position: Position, own: dict[str, Any]) -> dict[str, Any]:
    """Return the state that is kept of a position.

    Raises
    ------
    DamagedFileError
        If the file is not as it was written.
    FileFormatError
        If it is of another version.
    InvalidArgumentError
        If it is of another run than the one described by `own`; says what differs.
    """
    read = folder.read(position)
    there, here = dict(read["run"]), dict(own)
    versions = there.pop("torch"), here.pop("torch")
    ranks = there.pop("ranks", 1), here.pop("ranks", 1)
    _check_same(there, here, folder.file(position))
    if ranks[0] != ranks[1]:
        written = f"{folder.file(position)} was written by a run of ranks: {ranks[0]}"
        warn(f"{written}, this has {ranks[1]}: results are the same but for rounding and noise")
    if versions[0] != versions[1]:
        written = f"{folder.file(position)} was written with torch {versions[0]}"
        warn(f"{written}, this is {versions[1]}: results may differ")
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
    return f"{counted(len(names), 'task')}, {shown}{', ...' if len(names) > 3 else ''}"


def _make_way(folder: CheckpointFolder, position: Position) -> None:
    """Take what is beyond a position away, damaged files under another name."""
    for later in folder.positions():
        if later > position:
            try:
                folder.read(later)
            except FileFormatError:
                folder.set_aside(later)
    folder.forget_after(position)


def warn(message: str) -> None:
    """Warn of a checkpoint."""
    warnings.warn(message, CheckpointWarning, stacklevel=2)
