"""A loader whose sample ids go to a recorder, so that the loop sees the batches it always saw."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import DistributedSampler

from pymtg.data.indexed import Numbered, without_id
from pymtg.errors import InvalidTypeError
from pymtg.hooks._batches import Turn
from pymtg.hooks._reading import as_ids
from pymtg.ranks import own_samples

if TYPE_CHECKING:
    from pymtg.hooks._recorder import Recorder

__all__ = ["RecordedLoader", "padding_sampler", "split_batch"]


class RecordedLoader:
    """What :meth:`Recorder.batches` returns. Attributes of the loader can be read through it."""

    def __init__(self, recorder: Recorder, loader: Any) -> None:
        self.recorder = recorder
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        own, seen, turn = _own_samples(self.loader), 0, Turn()
        try:
            for batch in self.loader:
                ids, rest = split_batch(batch)
                seen += len(ids)
                if self.recorder.attached:
                    self.recorder._advance(turn, ids, min(len(ids), max(0, seen - own)))
                yield rest
            if self.recorder.attached:
                self.recorder._end(turn)
        finally:  # at a break too
            self.recorder._close(turn)

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        # only what is not found here; copying and pickling ask before `loader` is set
        if name == "loader" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.loader, name)


def padding_sampler(loader: Any) -> DistributedSampler[Any] | None:
    """Return the sampler of a loader if it is one that is known to repeat samples at its end, to even the ranks out."""
    for holder in (loader, getattr(loader, "batch_sampler", None)):
        sampler = getattr(holder, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            return sampler if not sampler.drop_last and _draws_by_torch(sampler) else None
    return None


def _draws_by_torch(sampler: DistributedSampler[Any]) -> bool:
    """Whether torch's own method deals the samples out: a subclass with another draws what it likes, maybe all new."""
    draws = type(sampler).__iter__
    of_lightning = {f"lightning{dot}fabric.utilities.distributed" for dot in "._"}  # it puts it around other samplers
    return draws is DistributedSampler.__iter__ or (
        draws.__module__ in of_lightning and draws.__qualname__ == "DistributedSamplerWrapper.__iter__"
    )


def _own_samples(loader: Any) -> int:
    """Return how many samples of a loader are no padding of its sampler, which would count twice."""
    sampler = padding_sampler(loader)
    return sys.maxsize if sampler is None else own_samples(sampler)


def split_batch(batch: Any) -> tuple[Tensor, Any]:
    """Return the ids of a batch and the batch as it would be without them."""
    if isinstance(batch, Mapping) and "sample_id" in batch:
        return as_ids(batch["sample_id"]), without_id(batch)
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        first = batch[0]
        if isinstance(first, Tensor) and first.dim() == 1 and not first.is_floating_point():
            rest = batch[1:]
            return as_ids(first), batch.plain._make(rest) if isinstance(batch, Numbered) else rest
    raise InvalidTypeError(
        "loader must yield sample ids first, or under the key 'sample_id': make it of pymtg.data.with_ids(dataset); "
        f"got {_described(batch)}"
    )


def _described(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a {type(batch).__name__} with the keys {list(batch)}"
    if isinstance(batch, (tuple, list)) and batch:
        first = batch[0]
        kind = f"{first.dtype} {list(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
        return f"a {type(batch).__name__} that starts with {kind}"
    return type(batch).__name__
