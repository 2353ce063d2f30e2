"""What a training command checks before it spends hours: data, directory, device."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pymtg._cli import options as opt
from pymtg._cli.errors import CommandError, one_line

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from pymtg.data import TaskData

__all__ = [
    "MilestoneDecay",
    "check_decay",
    "check_monitor",
    "check_place",
    "decay_of",
    "load_data",
    "shown_decay",
    "shown_monitor",
]


def check_place(
    out: Path,
    device: str | None,
    leads: bool = True,
    *,
    log: Path | None = None,
    tensorboard: Path | None = None,
    profile: Path | None = None,
) -> None:
    """Try out the places of the run's files, where this process is the one that writes there, and the device.

    Nothing is made for one option where another names a file in the place of a directory, or the other way round.
    """
    if leads:
        if log is not None and os.path.isdir(log):
            raise _unwritable("--log", IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(log)))
        if log is not None and os.path.exists(log) and not os.path.isfile(log):
            log = None  # a device or a pipe is written to as it is
        places = {"--out": out, "--log": log and log.parent, "--tensorboard": tensorboard, "--profile": profile}
        directories = {option: place for option, place in places.items() if place is not None}
        for attempt in (_check_kind, _check_writable):
            for option, directory in directories.items():
                attempt(option, directory)
    if device is not None:
        _try_device(device)


def _check_kind(option: str, directory: Path) -> None:
    """Raise CommandError where a file stands in the place of the directory or of one above it."""
    there = next(path for path in (directory, *directory.absolute().parents) if os.path.exists(path))
    if not os.path.isdir(there):
        raise _unwritable(option, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(there)))


def _check_writable(option: str, directory: Path) -> None:
    from pymtg.report import check_writable

    try:
        check_writable(directory)
    except OSError as error:
        raise _unwritable(option, error) from None


def _unwritable(option: str, error: OSError) -> CommandError:
    kind = "file" if option == "--log" else "directory"
    return CommandError(f"{option} must be a {kind} that can be written; {one_line(error)}")


def _try_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device).add_(1).item()
    # torch says "no such device" with all of these, depending on the device and on how torch was built
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CommandError(
            f"--device must name a device that works here; got {device!r}: {_first_line(error)}"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_data(
    spec: str,
    seed: int,
    test_size: float,
    val_size: float,
    targets: int | None = None,
    attributes: str | None = None,
    image_size: int | None = None,
    images: str | None = None,
) -> TaskData:
    """Load a data set, with the options that only some sets have; a missing package becomes an error of the command."""
    from pymtg.data import load

    names: Any = attributes
    if attributes is not None and attributes not in ("9", "all"):
        names = [name.strip() for name in attributes.split(",")]
    of_celeba = {"attributes": names, "image_size": image_size, "images": images}
    try:
        return load(spec, seed, test_size=test_size, val_size=val_size, targets=targets, **of_celeba)
    except ImportError as error:
        raise CommandError(one_line(error)) from None


@dataclass(frozen=True)
class MilestoneDecay:
    """Makes schedulers that multiply the learning rate by `gamma` after each of the epochs `milestones`."""

    milestones: tuple[int, ...]
    gamma: float

    def __call__(self, optimizer: Optimizer) -> LRScheduler:
        """Return the scheduler of an optimizer."""
        from torch.optim.lr_scheduler import MultiStepLR

        return MultiStepLR(optimizer, list(self.milestones), self.gamma)


def decay_of(milestones: str | None, gamma: float | None) -> MilestoneDecay | None:
    """Return what ``--lr-milestones`` and ``--lr-gamma`` (0.5 if not given) ask for; None for a constant rate."""
    if milestones == "none":  # with a factor too: the file that has the one has the other
        return None
    if milestones is None:
        if gamma is not None:
            raise CommandError("--lr-gamma needs epochs at which it applies: give them with --lr-milestones")
        return None
    gamma = 0.5 if gamma is None else gamma
    if not 0 < gamma <= 1:
        raise CommandError(f"--lr-gamma must be above 0 and at most 1; got {gamma}")
    return MilestoneDecay(opt.whole_numbers("--lr-milestones", milestones), gamma)


def check_decay(decay: MilestoneDecay | None, longest: int) -> None:
    """Raise CommandError for a milestone beyond the longest of a run's stages, whose epochs are counted each from 1."""
    beyond = [] if decay is None else [epoch for epoch in decay.milestones if epoch > longest]
    if beyond:
        raise CommandError(
            f"--lr-milestones must not go beyond the epochs of the longest stage ({longest}); "
            f"got {', '.join(map(str, beyond))}"
        )


def shown_decay(decay: MilestoneDecay | None) -> dict[str, Any]:
    """Return what a run's settings hold of it; nothing of a constant rate."""
    return {} if decay is None else {"lr_milestones": list(decay.milestones), "lr_gamma": decay.gamma}


def check_monitor(monitor: str | None, tasks: TaskData) -> None:
    """Raise CommandError for a validation score where nothing is validated, or that none of the tasks has."""
    from pymtg.trainers._monitor import check_monitor as check_suits

    if monitor is not None and tasks.val is None:
        raise CommandError("--monitor needs a validation set: give its share of the rows with --val-size")
    check_suits(monitor, tasks.layout)


def shown_monitor(monitor: str | None, tasks: TaskData) -> dict[str, Any]:
    """Return what a run's settings hold of the validation score: its name; None where nothing is validated."""
    from pymtg.trainers._monitor import monitor_name

    return {"monitor": None if tasks.val is None else monitor_name(monitor, tasks.layout)}
