"""Runs that can be stopped and gone on with: what the training commands share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pymtg._cli.errors import CommandError

__all__ = ["checkpoint_directory", "clear_checkpoints", "print_profile", "stoppable"]


def checkpoint_directory(out: Path, resume: bool, leads: bool) -> Path:
    """Return where a run's checkpoints are; CommandError if there are some that the call would not go on from.

    Of several ranks, the one that leads looks.
    """
    from pymtg.trainers._checkpoints import CheckpointFolder

    directory = out / "checkpoints"
    if leads and not resume and CheckpointFolder(directory).count():
        raise CommandError(f"{directory} holds a run that was stopped: go on with --resume, or remove the directory")
    return directory


def clear_checkpoints(directory: Path) -> None:
    """Delete the checkpoints of a run that is finished."""
    from pymtg.trainers._checkpoints import CheckpointFolder

    CheckpointFolder(directory).clear()


def print_profile(directory: Path | None) -> None:
    """Print the table of a run's profile, if one was asked for; nothing where ranks have directories of their own."""
    from pymtg.trainers._profile_files import TABLE

    if directory is not None and (directory / TABLE).is_file():
        print((directory / TABLE).read_text(encoding="utf-8"))


@contextmanager
def stoppable() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM save before they end the command; show all warnings about checkpoints, alike ones too."""
    from pymtg.trainers._errors import CheckpointWarning
    from pymtg.trainers._stopping import on_signals

    with warnings.catch_warnings(), on_signals():
        warnings.simplefilter("always", CheckpointWarning)
        yield
