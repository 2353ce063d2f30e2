"""Checkpoints as files: what is written is whole and checked, and the newest good one is found again.

A directory holds a file for every finished stage, ``stage-002.safetensors``, and files of the stage that was at work,
``at-003-000012-00000000.safetensors``: the stage's number, its finished epochs, and the batches since. Each is a
position from which a run can go on, given the finished stages before it. A stage that is a run of its own, a seed of a
comparison, has its checkpoints in a directory below, ``run-003``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pymtg._files import replacing
from pymtg._tensor_files import save_tensors
from pymtg.errors import FileFormatError
from pymtg.trainers._state_tree import flatten, unflatten

__all__ = ["VERSION", "CheckpointFolder", "DamagedFileError", "Position"]

FORMAT = "pymtg.checkpoint"
VERSION = "2"
_NAME = re.compile(r"(?:stage-(\d{3,})|at-(\d{3,})-(\d{6,})-(\d{8,}))\.safetensors")
_RUN = re.compile(r"run-(\d{3,})")
# Ours, and from 0.8 on those that safetensors itself writes to first.
_LEFT_OVER = re.compile(r"\.(?:stage|at)-[\d-]+\.safetensors\..+|\.tmp[A-Za-z0-9]{6}")

Position: TypeAlias = tuple[int, int, int]
"""Finished stages, finished epochs of the next one, and the batches after these."""


class DamagedFileError(FileFormatError):
    """A checkpoint is truncated, or not as it was written."""


class CheckpointFolder:
    """The checkpoints of one run, in a directory that is made when the first is written."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)

    def positions(self) -> list[Position]:
        """Return the positions of all files, the furthest first."""
        return sorted(self._files(), reverse=True)

    def run(self, number: int) -> CheckpointFolder:
        """Return the checkpoints of a stage that is a run of its own."""
        return CheckpointFolder(self.directory / f"run-{number:03d}")

    def count(self) -> int:
        """Return how many checkpoints there are, those of stages that are runs of their own among them."""
        return len(self.positions()) + sum(run.count() for run in self.runs())

    def runs(self) -> list[CheckpointFolder]:
        """Return the directories of stages that are runs of their own."""
        return [CheckpointFolder(path) for path in sorted(self._entries()) if _RUN.fullmatch(path.name)]

    def stage_file(self, stage: int) -> Path:
        """Return where the finished stage of that number is kept."""
        return self.directory / f"stage-{stage:03d}.safetensors"

    def file(self, position: Position) -> Path:
        """Return where the checkpoint of a position is kept."""
        stage, epoch, batch = position
        if (epoch, batch) == (0, 0):
            return self.stage_file(stage - 1)
        return self.directory / f"at-{stage:03d}-{epoch:06d}-{batch:08d}.safetensors"

    def write(self, position: Position, state: Mapping[str, Any]) -> None:
        """Write a checkpoint: whole, synced and under its name, or not at all.

        Raises
        ------
        OSError
            If it cannot be written; the checkpoints that were there before are as they were.
        InvalidTypeError
            If the state holds what no checkpoint can hold.
        """
        packed, tensors = flatten(state)
        text = json.dumps(packed, allow_nan=False)
        metadata = {"format": FORMAT, "version": VERSION, "state": text, "sha256": _checksum(text, tensors)}
        self._make_directory()
        path = self.file(position)
        with replacing(path) as temporary:
            save_tensors(temporary, tensors, metadata, "the checkpoint", path, "; those before it are whole")

    def read(self, position: Position) -> dict[str, Any]:
        """Read what :meth:`write` wrote.

        Raises
        ------
        DamagedFileError
            If the file is absent, truncated or not as it was written.
        FileFormatError
            If it is of another version, or no checkpoint at all.
        """
        path = self.file(position)
        metadata, tensors = _load(path)
        if metadata.get("format") != FORMAT:
            raise FileFormatError(f"{path} is no checkpoint: its format is {metadata.get('format')!r}, not {FORMAT!r}")
        if metadata.get("version") != VERSION:
            version = metadata.get("version")
            raise FileFormatError(f"{path} is a checkpoint of version {version!r}; this pymtg reads {VERSION!r}")
        text = metadata.get("state", "")
        if metadata.get("sha256") != _checksum(text, tensors):
            raise DamagedFileError(f"{path} is damaged: its checksum is not that of its contents")
        try:
            state: dict[str, Any] = unflatten(json.loads(text), tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedFileError(f"{path} is damaged: {error}") from error
        return state

    def prune(self, newest: Position, keep: int) -> None:
        """Delete the files within a stage that are not among the last `keep` positions up to `newest`.

        Finished stages stay: what follows needs them.
        """
        found = [position for position in self.positions() if position <= newest]
        for position in found[keep:]:
            if position[1:] != (0, 0):
                self.file(position).unlink(missing_ok=True)

    def forget_after(self, position: Position) -> None:
        """Delete what is beyond a position, from which a run goes on another time."""
        for later in self.positions():
            if later > position:
                self.file(later).unlink(missing_ok=True)

    def set_aside(self, position: Position) -> None:
        """Take a damaged file out of the way, under a name that says so."""
        path = self.file(position)
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, path.with_name(f"{path.name}.damaged"))

    def remove_left_overs(self) -> None:
        """Delete half-written temporary files of a process that was killed."""
        for path in self._entries():
            if _LEFT_OVER.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete all checkpoints, and the directory if nothing else is in it."""
        self.remove_left_overs()
        for run in self.runs():
            run.clear()
        for position in self.positions():
            self.file(position).unlink(missing_ok=True)
        for path in self._entries():
            if _NAME.fullmatch(path.name.removesuffix(".damaged")):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    def _entries(self) -> list[Path]:
        return list(self.directory.iterdir()) if self.directory.is_dir() else []

    def _files(self) -> list[Position]:
        found: list[Position] = []
        for path in self._entries():
            if match := _NAME.fullmatch(path.name):
                finished, *at = match.groups()
                stage, epoch, batch = (int(finished) + 1, 0, 0) if finished is not None else map(int, at)
                found.append((stage, epoch, batch))
        return found

    def _make_directory(self) -> None:
        if not self.directory.is_dir():
            self.directory.mkdir(parents=True)


def _load(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    import safetensors
    from safetensors import safe_open

    if not path.is_file():
        raise DamagedFileError(f"{path} is not there")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except safetensors.SafetensorError as error:
        raise DamagedFileError(f"{path} is truncated or damaged: {error}") from error


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the JSON text and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
