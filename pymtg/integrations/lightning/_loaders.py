"""What the training loader says: how many samples, ids or none, and which rows of an epoch are copies."""

from __future__ import annotations

from typing import Any

from pymtg.data import IndexedDataset
from pymtg.hooks._loader import padding_sampler
from pymtg.ranks import own_samples

__all__ = ["Padding", "gives_ids", "size_of"]


def gives_ids(loader: Any) -> bool:
    """Whether the samples come out of :func:`pymtg.data.with_ids`, at any depth of subsets."""
    return _indexed(loader) is not None


def size_of(loader: Any) -> int | None:
    """Return how many ids there are: of the set inside :func:`with_ids`, or of the loader's own; None if unknown."""
    counted = _indexed(loader)
    try:
        return len(getattr(loader, "dataset", None) if counted is None else counted)  # type: ignore[arg-type]
    except TypeError:
        return None


def _indexed(loader: Any) -> IndexedDataset | None:
    dataset = getattr(loader, "dataset", None)
    while dataset is not None and not isinstance(dataset, IndexedDataset):
        dataset = getattr(dataset, "dataset", None)
    return dataset


class Padding:
    """How many rows of each batch are real, where a DistributedSampler repeats samples to even the ranks out.

    Such a sampler deals ``ceil(N / W) * W`` positions to W ranks in turn; those from N on are repeats, and are the last
    rows that a rank sees in an epoch. A subclass that draws in its own way is not one of them. ``rows_seen`` counts the
    rows of this rank since its loader began.
    """

    def __init__(self) -> None:
        self.rows_seen = 0
        self._real: int | None = None

    def begin(self, loader: Any) -> None:
        """Count from the start of an epoch of `loader`."""
        self.rows_seen = 0
        self.look(loader)

    def look(self, loader: Any) -> None:
        """Read off the sampler how many rows of an epoch are real on this rank."""
        sampler = padding_sampler(loader)
        self._real = None if sampler is None else own_samples(sampler)

    def real_rows(self, size: int) -> int:
        """Return how many of the next `size` rows are real, the first ones."""
        before, self.rows_seen = self.rows_seen, self.rows_seen + size
        return size if self._real is None else min(size, max(0, self._real - before))
