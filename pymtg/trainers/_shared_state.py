"""States and checkpoints of several ranks: rank 0 reads and writes, and what it does is known to all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from pymtg._ranks import Ranks
from pymtg.errors import InvalidArgumentError, RankError
from pymtg.trainers._checkpoints import CheckpointFolder, Position
from pymtg.trainers._described import differences
from pymtg.trainers._state_tree import flatten, unflatten

__all__ = ["RankedFolder", "Shares", "check_alike", "epochs_logged", "on_first", "shared"]

T = TypeVar("T")


def shared(ranks: Ranks, value: Any, rank: int = 0) -> Any:
    """Return one rank's value on all: nested plain values and tensors on the CPU, as a checkpoint holds them."""
    packed, tensors = flatten(value) if ranks.rank == rank else (None, {})
    described = {name: (str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in tensors.items()}
    packed, described = json.loads(ranks.text(json.dumps([packed, described]), rank))
    found = {}
    for name, (dtype, shape) in described.items():
        tensor = tensors[name] if ranks.rank == rank else torch.empty(shape, dtype=getattr(torch, dtype))
        found[name] = ranks.give_(tensor, rank) if tensor.numel() else tensor
    return value if ranks.rank == rank else unflatten(packed, found)


def on_first(ranks: Ranks | None, compute: Callable[[], T], pack: Callable[[T], Any], unpack: Callable[[Any], T]) -> T:
    """Return on all ranks what rank 0 computes; packed, it is what a checkpoint could hold."""
    if ranks is None:
        return compute()
    found = ranks.first(compute)
    packed = shared(ranks, None if found is None else pack(found))
    return unpack(packed) if found is None else found


def check_alike(ranks: Ranks, own: dict[str, Any]) -> None:
    """Raise RankError, on all ranks, where one was given other data or options than rank 0; says which."""
    found = differences(shared(ranks, own), own)
    told = [ranks.text(json.dumps(found[:6]), rank) for rank in range(ranks.world)]
    for rank, text in enumerate(told):
        if json.loads(text):
            raise RankError(
                f"every rank must be given the same data and options; rank {rank} differs from rank 0 in "
                f"{', '.join(json.loads(text))}".replace(" there", " on rank 0").replace(" here", f" on rank {rank}")
            )


class Shares:
    """The states of a stage in which every rank trains a network of its own: kept together, told apart again."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def packed(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the states of all ranks as one."""
        return {"each": [shared(self.ranks, state, rank) for rank in range(self.ranks.world)]}

    def own(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return this rank's state of those.

        Raises
        ------
        InvalidArgumentError
            If another number of ranks trained the networks.
        """
        each = state.get("each", [state])
        if len(each) != self.ranks.world:
            raise InvalidArgumentError(
                f"resume must go on with as many ranks as have trained networks of their own, {len(each)}; "
                f"got {self.ranks.world}"
            )
        found: dict[str, Any] = each[self.ranks.rank]
        return found


def epochs_logged(state: dict[str, Any], *, finished: bool) -> int:
    """Return how many epochs the log has of a stage: of rank 0's network alone until all ranks are finished."""
    each = {one["name"]: one for one in state.get("each", [state])[: None if finished else 1]}
    return sum(len(one["history"]["loss"]) * one.get("networks", 1) for one in each.values() if "history" in one)


class RankedFolder(CheckpointFolder):
    """A directory of checkpoints in which rank 0 writes; that it failed to is an error on every rank."""

    def __init__(self, directory: Path, ranks: Ranks) -> None:
        super().__init__(directory)
        self.ranks = ranks

    def write(self, position: Position, state: Mapping[str, Any]) -> None:
        """Write a checkpoint; RankError on the other ranks where rank 0 cannot."""
        files = CheckpointFolder(self.directory)
        self.ranks.first(lambda: files.write(position, state))

    def prune(self, newest: Position, keep: int) -> None:
        """Delete what is too old."""
        if self.ranks.leads:
            CheckpointFolder(self.directory).prune(newest, keep)

    def positions(self) -> list[Position]:
        """Return the positions that rank 0 has files of."""
        found = CheckpointFolder(self.directory).positions() if self.ranks.leads else []
        return [(stage, epoch, batch) for stage, epoch, batch in json.loads(self.ranks.text(json.dumps(found)))]
