"""Ids through a collator, and which rows of a last batch are copies that accelerate fills it up with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pymtg.errors import InvalidTypeError
from pymtg.hooks._reading import as_ids

__all__ = ["IdCollator", "real_rows"]


class IdCollator:
    """A collator that takes the ids off the samples, collates these, and puts the ids into the batch as a tensor.

    `fresh` says that the samples are dicts made for this batch, which need no copy before the id is taken off.
    """

    def __init__(self, collator: Callable[[list[Any]], Any], column: str, fresh: bool) -> None:
        self.collator = collator
        self.column = column
        self.fresh = fresh

    def __call__(self, features: Sequence[Any]) -> Any:
        """Return the collated batch with ``[B]`` int64 ids in it."""
        ids, rest = [], []
        for feature in features:
            if not isinstance(feature, Mapping) or self.column not in feature:
                shown = f"the keys {list(feature)}" if isinstance(feature, Mapping) else type(feature).__name__
                raise InvalidTypeError(f"train_dataset must yield dicts with the key {self.column!r}; got {shown}")
            sample: Any = feature if self.fresh else dict(feature)
            ids.append(int(sample.pop(self.column)))
            rest.append(sample)
        batch = self.collator(rest)
        if not hasattr(batch, "keys"):
            raise InvalidTypeError(f"data_collator must return a dict; got {type(batch).__name__}")
        batch[self.column] = as_ids(ids)
        return batch


def real_rows(loader: Any, rows: int, rank: int) -> int:
    """Return how many of the `rows` rows of this rank's last batch are real, the first ones.

    accelerate deals batches out in the order of the ranks and completes the last round with samples from the beginning:
    side by side, the ranks' last batches hold what is left of the epoch, then copies.
    """
    left = _left_over(loader)
    return rows if left is None else max(0, min(rows, left - rank * rows))


def _left_over(loader: Any) -> int | None:
    """Return how many samples the last round of all ranks holds; None where it is full or nothing is filled up."""
    if hasattr(loader, "slice_fn"):  # dispatched by rank 0, which counts what it deals out
        return int(loader.remainder) if loader.remainder > 0 else None
    shard, sampler = None, getattr(loader, "batch_sampler", None)
    while hasattr(sampler, "batch_sampler"):
        shard = sampler if hasattr(sampler, "num_processes") else shard
        sampler = sampler.batch_sampler  # type: ignore[union-attr]
    size = getattr(sampler, "batch_size", None)
    if shard is None or shard.drop_last or not shard.even_batches or not size or not hasattr(sampler, "sampler"):
        return None
    total = size if shard.split_batches else size * shard.num_processes
    return len(sampler.sampler) % total or None  # type: ignore[union-attr]
