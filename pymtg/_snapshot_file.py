"""Snapshots in a file: appended in pieces, memory-mapped in pieces."""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pymtg._snapshot import Snapshot, slab_rows

__all__ = ["FileSnapshot", "SnapshotFile"]

_NUMPY = {torch.int32: np.int32, torch.int16: np.int16}


class _Nameless:
    """A file without a name, closed with the last that holds this."""

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        # Without a buffer: what could not be written must not come back when the file is closed.
        self.file: Any = tempfile.TemporaryFile(buffering=0, dir=directory, prefix="pymtg-snapshots-")  # noqa: SIM115
        weakref.finalize(self, self.file.close)


class _Block:
    """A tensor in a file, row by row from `offset` on."""

    def __init__(self, file: _Nameless, offset: int, like: Tensor) -> None:
        self.file, self.offset = file, offset
        self.shape, self.dtype = tuple(like.shape), like.dtype

    @property
    def end(self) -> int:
        return self.offset + self._row_bytes * self.shape[0]

    @property
    def _row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> Tensor:
        """Map rows [start, stop); what is written to the tensor stays in memory."""
        shape = (min(stop, self.shape[0]) - start, *self.shape[1:])
        offset = self.offset + start * self._row_bytes
        return torch.from_numpy(np.memmap(self.file.file, _NUMPY[self.dtype], mode="c", offset=offset, shape=shape))


class FileSnapshot(Snapshot):
    """A snapshot in a file: ``words`` and ``counts`` map all of it, :meth:`parts` a stretch at a time."""

    def __init__(self, epoch: int, words: _Block, counts: _Block, ddof: int) -> None:
        for name, value in (("epoch", epoch), ("ddof", ddof), ("_blocks", (words, counts))):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name in ("words", "counts"):
            block = self._blocks[name == "counts"]
            return block.rows(0, block.shape[0])
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"FileSnapshot(epoch={self.epoch})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Arrays: torch hands tensors to processes as descriptors, closed when these tensors, made for this, are gone.
        return _in_memory, (self.epoch, self.words.numpy(), self.counts.numpy(), self.ddof)

    def parts(self) -> Iterator[Snapshot]:
        words, counts = self._blocks
        step = slab_rows(words.shape[2])
        for start in range(0, words.shape[0], step):
            yield Snapshot(self.epoch, words.rows(start, start + step), counts.rows(start, start + step), self.ddof)


class SnapshotFile:
    """A file that has no name, so that nothing is left of it however the process ends.

    Raises
    ------
    OSError
        If no file can be made in the directory.
    """

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self.directory = directory
        self.snapshots: list[FileSnapshot] = []
        self._nameless = _Nameless(directory)
        self._end = 0

    def append(self, snapshot: Snapshot) -> FileSnapshot:
        """Write a snapshot behind the others; OSError, with nothing changed, if the disk is full."""
        words = _Block(self._nameless, self._end, snapshot.words)
        counts = _Block(self._nameless, _aligned(words.end), snapshot.counts)
        try:
            for block, name in ((words, "words"), (counts, "counts")):
                self._nameless.file.seek(block.offset)
                for part in snapshot.parts():
                    self._write(getattr(part, name))
        except OSError as error:
            self._nameless.file.truncate(self._end)
            where = tempfile.gettempdir() if self.directory is None else os.fspath(self.directory)
            raise OSError(
                error.errno or errno.EIO, f"a snapshot could not be written: {error.strerror}", where
            ) from error
        self._end = _aligned(counts.end)
        taken = FileSnapshot(snapshot.epoch, words, counts, snapshot.ddof)
        self.snapshots.append(taken)
        return taken

    def _write(self, values: Tensor) -> None:
        left = values.contiguous().numpy(force=True).reshape(-1).view(np.uint8).data
        while left:
            left = left[self._nameless.file.write(left) :]


def _in_memory(epoch: int, words: np.ndarray, counts: np.ndarray, ddof: int) -> Snapshot:
    return Snapshot(epoch, torch.from_numpy(words), torch.from_numpy(counts), ddof)


def _aligned(offset: int) -> int:
    return -(-offset // 64) * 64
