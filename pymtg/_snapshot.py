"""A data map as it stood at one moment, kept in memory, read from a file, or forgotten but for its Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from pymtg import _words
from pymtg.errors import SnapshotsNotKeptError

__all__ = ["ForgottenSnapshot", "HostSnapshot", "Snapshot", "forgotten", "slab_rows"]

# Numbers of a plane that are unpacked at once, 4 MB; but so many samples that mirroring a large Gram matrix after each
# slab costs little.
_SLAB = 2**20
_FEWEST_ROWS = 256


@dataclass(frozen=True)
class Snapshot:
    """A data map as it stood after an epoch: cumulative, from the first observation on."""

    epoch: int
    words: Tensor
    counts: Tensor
    ddof: int

    @property
    def mean(self) -> Tensor:
        """Mean gold-label probability, float32 ``[M, T]``; 0 where nothing was observed."""
        return _words.unpack_values(self.words)[0]

    @property
    def std(self) -> Tensor:
        """Standard deviation ("variability"), float32 ``[M, T]``; 0 where less than ddof + 1 was observed."""
        std = _words.unpack_values(self.words)[1]
        return std if self.ddof == 0 else _deviation(std, self.count)

    @property
    def count(self) -> Tensor:
        """Number of observations, int32 ``[M, T]``."""
        counts = self.counts.to(torch.int32, copy=True)  # not the state itself, which goes on counting
        return counts if counts.dim() == 2 else counts[:, None].expand(-1, self.words.shape[2])

    @property
    def correctness(self) -> Tensor:
        """Share of observations whose argmax was the gold label, float32 ``[M, T]``; 0 where nothing was observed.

        Taken over the first 4,095 observations of a sample.
        """
        counted = self.counts.clamp(1, _words.MOST_COUNTED)
        return _words.unpack_right(self.words) / (counted if counted.dim() == 2 else counted[:, None])

    def parts(self) -> Iterator[Snapshot]:
        """Yield the snapshot in stretches of some samples each, in the samples' order, without copying."""
        step = slab_rows(self.words.shape[2])
        for start in range(0, self.words.shape[0], step):
            yield Snapshot(self.epoch, self.words[start : start + step], self.counts[start : start + step], self.ddof)

    def slabs(self) -> Iterator[Tensor]:
        """Yield the features in slabs, float32 ``[rows, T]``: the means of some samples, then their deviations.

        A (sample, task) without observation takes the mean over the tasks that have one: it says nothing of its task.
        """
        for part in self.parts():
            yield from _planes(part)


class ForgottenSnapshot(Snapshot):
    """What :meth:`DataMap.snapshot` returns where a snapshot is added to the Gram matrix and not kept."""

    def __init__(self, epoch: int, ddof: int) -> None:
        object.__setattr__(self, "epoch", epoch)
        object.__setattr__(self, "ddof", ddof)

    def __getattr__(self, name: str) -> Any:
        if name in ("words", "counts"):
            forgotten("a snapshot's values")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"ForgottenSnapshot(epoch={self.epoch})"


class HostSnapshot(Snapshot):
    """A snapshot of a map on a GPU, on its way into page-locked host memory; whoever reads it waits for it to be there.

    The copy has its place in the current stream, before whatever is recorded next; only the host does not wait.
    """

    def __init__(self, epoch: int, words: Tensor, counts: Tensor, ddof: int) -> None:
        copies = [torch.empty_like(part, device="cpu", pin_memory=part.is_cuda) for part in (words, counts)]
        for copy, part in zip(copies, (words, counts), strict=True):
            copy.copy_(part, non_blocking=True)
        event = torch.cuda.Event() if words.is_cuda else None  # type: ignore[no-untyped-call]
        if event is not None:
            event.record(torch.cuda.current_stream(words.device))
        for name, value in (("epoch", epoch), ("ddof", ddof), ("_copies", copies), ("_event", event)):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in ("words", "counts"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if self._event is not None:
            self._event.synchronize()
        return self._copies[name == "counts"]

    def __repr__(self) -> str:
        return f"HostSnapshot(epoch={self.epoch})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Snapshot, (self.epoch, self.words, self.counts, self.ddof)


def forgotten(what: str) -> NoReturn:
    """Raise SnapshotsNotKeptError: `what` needs kept snapshots."""
    raise SnapshotsNotKeptError(
        f"{what} must come from kept snapshots, and this data map added its own to the Gram matrix and forgot them "
        "(snapshots='gram'): for snapshots, features() and mode 'points' use DataMap(..., snapshots='disk') or "
        "'memory'; gram() is all that the other modes need"
    )


def slab_rows(num_tasks: int) -> int:
    """Return how many samples are read at once."""
    return max(_FEWEST_ROWS, _SLAB // num_tasks)


def _planes(part: Snapshot) -> Iterator[Tensor]:
    """Yield means and deviations; a function of its own, so that they are gone before the next part is read."""
    mean, std = _words.unpack_values(part.words)
    for values in (mean, std if part.ddof == 0 else _deviation(std, part.count)):
        yield values if part.counts.dim() == 1 else _filled(values, part.counts > 0)


def _deviation(std: Tensor, count: Tensor) -> Tensor:
    """Return deviations of ddof 1 from those of ddof 0."""
    factor = (count / (count - 1)).sqrt()
    return torch.where(count > 1, std * factor, 0.0)


def _filled(values: Tensor, observed: Tensor) -> Tensor:
    average = torch.where(observed, values, 0).sum(1, keepdim=True) / observed.sum(1, keepdim=True).clamp(min=1)
    return torch.where(observed, values, average)
