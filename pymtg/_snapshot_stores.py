"""Where a data map's snapshots go: into memory, into a file, or into a Gram matrix that is all that is left of them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pymtg._device_gram import device_gram
from pymtg._ranges import span
from pymtg._snapshot import ForgottenSnapshot, HostSnapshot, Snapshot, forgotten
from pymtg._snapshot_file import FileSnapshot, SnapshotFile
from pymtg.errors import InvalidArgumentError, InvalidTypeError

if TYPE_CHECKING:
    from pymtg._gram import Float64Array

__all__ = ["KINDS", "SnapshotStore", "gram_of", "new_store"]


class SnapshotStore(ABC):
    """The snapshots of one map, in the order of their epochs."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def epochs(self) -> tuple[int, ...]:
        """The epochs at which snapshots were taken."""

    @abstractmethod
    def kept(self, what: str) -> tuple[Snapshot, ...]:
        """Return the snapshots; SnapshotsNotKeptError, naming `what` they are for, where they were forgotten."""

    @abstractmethod
    def add(self, snapshot: Snapshot) -> Snapshot:
        """Take a snapshot whose tensors may change later; return what was kept of it."""

    @abstractmethod
    def empty(self) -> SnapshotStore:
        """Return a store of this kind without snapshots."""

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move to a device what belongs where the map's state is."""

    def gram(self, num_tasks: int) -> Float64Array | None:
        """Return the Gram matrix [T, T] of all snapshots, a fresh array; None where there is no snapshot."""
        if not self.epochs:
            return None
        return gram_of(num_tasks, self.kept("the Gram matrix"))

    def state(self) -> dict[str, Any]:
        """Return what a state dictionary holds of the snapshots: tensors, not copies."""
        entries: dict[str, Any] = {}
        for snapshot in self.kept("a state dictionary"):
            entries[f"snapshot.{snapshot.epoch}.words"] = snapshot.words
            entries[f"snapshot.{snapshot.epoch}.counts"] = snapshot.counts
        return entries

    def of_gram(self, epochs: Sequence[int], gram: Tensor) -> SnapshotStore:
        """Return a store of this kind that holds a Gram matrix; InvalidArgumentError where it keeps snapshots."""
        raise InvalidArgumentError(
            "state holds a Gram matrix in place of snapshots, which cannot be had back from it; "
            f"load it into a map with snapshots='gram' (got {self.kind!r})"
        )


class MemoryStore(SnapshotStore):
    """Copies in memory, on the device of the map."""

    kind = "memory"

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []

    @property
    def epochs(self) -> tuple[int, ...]:
        return tuple(snapshot.epoch for snapshot in self.snapshots)

    def kept(self, what: str) -> tuple[Snapshot, ...]:
        return tuple(self.snapshots)

    def add(self, snapshot: Snapshot) -> Snapshot:
        taken = Snapshot(snapshot.epoch, snapshot.words.clone(), snapshot.counts.clone(), snapshot.ddof)
        self.snapshots.append(taken)
        return taken

    def empty(self) -> MemoryStore:
        return MemoryStore()

    def to(self, device: torch.device) -> None:
        self.snapshots = [
            Snapshot(one.epoch, one.words.to(device), one.counts.to(device), one.ddof) for one in self.snapshots
        ]


class HostStore(MemoryStore):
    """Copies in host memory, page-locked where the map is on a GPU, made while the host goes on."""

    kind = "host"

    def add(self, snapshot: Snapshot) -> Snapshot:
        if not snapshot.words.is_cuda:
            return super().add(snapshot)
        taken = HostSnapshot(snapshot.epoch, snapshot.words, snapshot.counts, snapshot.ddof)
        self.snapshots.append(taken)
        return taken

    def empty(self) -> HostStore:
        return HostStore()

    def to(self, device: torch.device) -> None:
        pass


class GramStore(SnapshotStore):
    """One T x T matrix in float64, on the CPU whatever the map's device, and the epochs that went into it."""

    kind = "gram"

    def __init__(self) -> None:
        self._epochs: list[int] = []
        self._sum: Float64Array | None = None

    @property
    def epochs(self) -> tuple[int, ...]:
        return tuple(self._epochs)

    def kept(self, what: str) -> tuple[Snapshot, ...]:
        if self._epochs:
            forgotten(what)
        return ()

    def add(self, snapshot: Snapshot) -> Snapshot:
        self._sum = gram_of(snapshot.words.shape[2], [snapshot], self._sum)
        self._epochs.append(snapshot.epoch)
        return ForgottenSnapshot(snapshot.epoch, snapshot.ddof)

    def empty(self) -> GramStore:
        return GramStore()

    def to(self, device: torch.device) -> None:
        pass

    def gram(self, num_tasks: int) -> Float64Array | None:
        return None if self._sum is None else self._sum.copy()

    def state(self) -> dict[str, Any]:
        if self._sum is None:
            return {}
        return {"gram": torch.from_numpy(self._sum), "gram.epochs": torch.tensor(self._epochs, dtype=torch.int64)}

    def of_gram(self, epochs: Sequence[int], gram: Tensor) -> GramStore:
        store = GramStore()
        store._epochs = list(epochs)
        store._sum = np.array(gram.numpy(force=True), dtype=np.float64, order="C")
        return store


class DiskStore(SnapshotStore):
    """A file without a name in a directory: memory-mapped piece by piece, gone with the last that reads it."""

    kind = "disk"

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self.directory = directory
        self.file = SnapshotFile(directory)

    @property
    def epochs(self) -> tuple[int, ...]:
        return tuple(snapshot.epoch for snapshot in self.file.snapshots)

    def kept(self, what: str) -> tuple[Snapshot, ...]:
        return tuple(self.file.snapshots)

    def add(self, snapshot: Snapshot) -> FileSnapshot:
        return self.file.append(snapshot)

    def empty(self) -> DiskStore:
        return DiskStore(self.directory)

    def to(self, device: torch.device) -> None:
        pass

    def __deepcopy__(self, memo: dict[int, Any]) -> DiskStore:
        return _restored(self.directory, self.file.snapshots)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.directory, list(self.file.snapshots))


def _restored(directory: str | os.PathLike[str] | None, snapshots: Sequence[Snapshot]) -> DiskStore:
    """Return a store with a file of its own; of the system's temporary files if the directory is not there."""
    store = DiskStore(directory if directory is None or os.path.isdir(directory) else None)
    for snapshot in snapshots:
        store.add(snapshot)
    return store


def gram_of(num_tasks: int, snapshots: Iterable[Snapshot], gram: Float64Array | None = None) -> Float64Array:
    """Return the Gram matrix [T, T] of snapshots, read slab by slab; added to `gram` in place if given."""
    from pymtg._gram import gram_add, new_gram  # brings the compiled core along

    with span("gram"):
        gram = new_gram(num_tasks) if gram is None else gram
        for snapshot in snapshots:
            if snapshot.words.is_cuda:
                gram += device_gram(num_tasks, snapshot.slabs(), snapshot.words.device).numpy(force=True)
                continue
            for slab in snapshot.slabs():
                gram_add(gram, slab)
                del slab  # or it would be there while the next is read
    return gram


KINDS = tuple(store.kind for store in (MemoryStore, GramStore, DiskStore, HostStore))


def new_store(kind: object, directory: str | os.PathLike[str] | None) -> SnapshotStore:
    """Return an empty store.

    Raises
    ------
    InvalidArgumentError
        For another kind, a directory with a kind that writes nothing, or a directory that is not there.
    InvalidTypeError
        For a directory that is no path.
    """
    if kind not in KINDS:
        raise InvalidArgumentError(f"snapshots must be one of {', '.join(map(repr, KINDS))}; got {kind!r}")
    if directory is not None:
        if not isinstance(directory, (str, os.PathLike)):
            raise InvalidTypeError(f"directory must be a path; got {directory!r}")
        if kind != "disk":
            raise InvalidArgumentError(f"directory goes with snapshots='disk'; got snapshots={kind!r}")
        if not os.path.isdir(directory):
            raise InvalidArgumentError(f"directory must be one that exists; got {os.fspath(directory)!r}")
    if kind == "disk":
        return DiskStore(directory)
    if kind == "host":
        return HostStore()
    return GramStore() if kind == "gram" else MemoryStore()
