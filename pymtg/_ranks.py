"""The ranks of a torch.distributed run: who takes part, and the few collectives that pymtg is made of."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pymtg.errors import RankError

__all__ = ["Ranks", "cut", "leave", "lost_peers"]

T = TypeVar("T")

# What gloo, NCCL and torch's store say when a peer is gone or late; gloo's errors are plain RuntimeErrors.
_LOST = re.compile(
    r"gloo|connection (?:closed|reset|refused)|timed out waiting|NCCL|process ?group|socket|broken pipe", re.IGNORECASE
)


def cut(size: int, parts: int, part: int) -> range:
    """Return the positions of part number `part` of `parts` consecutive ones, the first of which are the longer."""
    return range(-(-size * part // parts), -(-size * (part + 1) // parts))


def leave() -> None:
    """End the default process group, where there is one.

    One of gloo's threads may still need Python's lock, to let go of the last collective's tensor. Before torch 2.8 the
    group's end waits for that thread with the lock held, for ever. Later ones do not wait at all where
    DistributedDataParallel has been used, which keeps the group alive, and the thread aborts the process when it asks
    for the lock of an interpreter that is ending. A moment without the lock lets it come to its end.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    time.sleep(0.1)
    dist.destroy_process_group()


@dataclass(frozen=True)
class Ranks:
    """The ranks of a process group, as one of them sees it.

    Parameters
    ----------
    rank, world
        Which one this is, and of how many.
    group
        The process group; None for the default one.
    on_cpu
        Whether the group's backend takes tensors on the CPU (gloo does, nccl does not).
    """

    rank: int
    world: int
    group: dist.ProcessGroup | None = None
    on_cpu: bool = True

    @classmethod
    def here(cls, group: dist.ProcessGroup | None = None) -> Ranks | None:
        """Return the ranks that are at work; None where there is no process group, or one of a single rank."""
        if not (dist.is_available() and dist.is_initialized()):
            return None
        world = dist.get_world_size(group)
        if world < 2:
            return None
        return cls(dist.get_rank(group), world, group, "cpu" in str(dist.get_backend_config(group)))

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes files and shows progress."""
        return self.rank == 0

    def part(self, size: int) -> range:
        """Return this rank's positions of `size`: consecutive, and one more or less than another rank's."""
        return cut(size, self.world, self.rank)

    def sum_(self, values: Tensor) -> Tensor:
        """Add a tensor up over the ranks, in place; all get the same bits. Returns it."""
        with self._met(values) as there:
            dist.all_reduce(there, group=self.group)
        return values

    def sum_async(self, values: Tensor) -> Callable[[], None]:
        """Begin :meth:`sum_`; the function returned waits for its end."""
        there = self._placed(values)
        with lost_peers(self):
            work = dist.all_reduce(there, group=self.group, async_op=True)

        def wait() -> None:
            with lost_peers(self):
                work.wait()
            if there is not values:
                values.copy_(there)

        return wait

    def sum_on_(self, values: Tensor, rank: int) -> Tensor:
        """Add a tensor up on one rank, in place; on the others it holds nothing of use then. Returns it."""
        with self._met(values) as there:
            dist.reduce(there, group=self.group, group_dst=rank)
        return values

    def give_(self, values: Tensor, rank: int = 0) -> Tensor:
        """Overwrite a tensor with that of one rank, in place. Returns it."""
        with self._met(values) as there:
            plain = there.reshape(-1).view(torch.uint8)  # backends know few types
            dist.broadcast(plain, group=self.group, group_src=rank)
        return values

    def text(self, text: str, rank: int = 0) -> str:
        """Return the text of one rank."""
        data = text.encode()
        size = int(self.give_(torch.tensor([len(data)]), rank))
        if size == 0:
            return ""
        mine = self.rank == rank
        values = torch.frombuffer(bytearray(data), dtype=torch.uint8) if mine else torch.empty(size, dtype=torch.uint8)
        return self.give_(values, rank).numpy().tobytes().decode()

    def joined(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks one after the other; one without rows takes type and shape from rank 0."""
        dtype, shape = json.loads(self.text(json.dumps([str(rows.dtype).removeprefix("torch."), list(rows.shape[1:])])))
        kind, sizes = getattr(torch, dtype), torch.zeros(self.world, dtype=torch.int64)
        sizes[self.rank] = len(rows)
        parts = []
        for rank, size in enumerate(self.sum_(sizes).tolist()):
            part = rows.contiguous() if rank == self.rank else rows.new_empty(size, *shape, dtype=kind)
            if size:
                parts.append(self.give_(part, rank))
        return torch.cat(parts) if parts else rows

    def first(self, compute: Callable[[], T]) -> T | None:
        """Let rank 0 compute something while the others wait; they get None.

        Where it raises, they raise too: RankError, with what rank 0 has to say.
        """
        found: T | None = None
        failure: Exception | None = None
        if self.leads:
            try:
                found = compute()
            except Exception as error:  # told to the others first, raised again below
                failure = error
        said = self.text("" if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        if said:
            raise RankError(f"rank 0 failed, and so rank {self.rank} of {self.world} ends: {said}")
        return found

    def check_alike(self, own: str, what: str) -> None:
        """Raise RankError, on all ranks, unless the ranks have the same text; `what` it stands for."""
        differs = torch.zeros(self.world, dtype=torch.int64)
        differs[self.rank] = own != self.text(own)
        others = self.sum_(differs).nonzero().flatten().tolist()
        if others:
            raise RankError(f"every rank must have the same {what}; rank {others[0]} has another than rank 0")

    @contextmanager
    def _met(self, values: Tensor) -> Iterator[Tensor]:
        there = self._placed(values)
        with lost_peers(self):
            yield there
        if there is not values:
            values.copy_(there)

    def _placed(self, values: Tensor) -> Tensor:
        """Return a tensor where the backend takes it, contiguous: itself if it is both."""
        if not self.on_cpu and values.device.type == "cpu":
            values = values.to("cuda")
        return values.contiguous()


@contextmanager
def lost_peers(ranks: Ranks | None) -> Iterator[None]:
    """Turn what a collective raises when a peer is gone, or silent for too long, into a RankError."""
    try:
        yield
    except RankError:
        raise
    except RuntimeError as error:
        if ranks is None or not (isinstance(error, dist.DistError) or _LOST.search(str(error))):
            raise
        raise RankError(
            f"rank {ranks.rank} of {ranks.world} has lost another rank, which has ended or did not answer in time: "
            f"{_first_sentence(error)}"
        ) from error


def _first_sentence(error: Any) -> str:
    """Return what a message says, without the place in gloo's sources before it and the advice behind it."""
    text = re.sub(r"^\[\S*\.cc:\d+\]\s*", "", str(error).strip())
    return text.split(". ", 1)[0].splitlines()[0]
