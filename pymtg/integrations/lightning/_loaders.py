"""What the training loader says: how many samples, ids or none, and which rows of an epoch are copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pymtg.data import IndexedDataset
from pymtg.hooks._loader import padding_sampler
from pymtg.hooks._reading import as_ids
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

    def real_rows_of(self, parts: Sequence[Any], whole: Any) -> list[list[int] | None]:
        """Return which rows of the parts of the next batch are real; None for all of them.

        `parts` are ids of rows in any order, `whole` those of the batch; all are integers ``[n]``. Where a sample is
        both real and a copy in one batch, its rows that come first are taken for the real ones.
        """
        real = self.real_rows(len(whole))
        if real == len(whole):
            return [None] * len(parts)
        in_batch = as_ids(whole).tolist()  # read off a device in the last batches alone
        left, copied = Counter(in_batch[:real]), set(in_batch[real:])
        kept: list[list[int] | None] = []
        for part in parts:
            ids = as_ids(part).tolist()
            if not set(ids) <= set(in_batch):  # numbers of another kind: by place, if at all
                kept.append(list(range(real)) if len(ids) == len(in_batch) else None)
                continue
            rows = []
            for row, sample in enumerate(ids):
                if sample not in copied or left[sample] > 0:
                    rows.append(row)
                    left[sample] -= 1
            kept.append(rows)
        return kept
