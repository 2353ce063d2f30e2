"""A data map that several ranks record: each what it sees; snapshots are kept by the samples' owners."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pymtg._map_ranks import merge_on_first, merge_owned
from pymtg._ranks import Ranks, cut
from pymtg._snapshot import Snapshot
from pymtg._snapshot_stores import SnapshotStore
from pymtg.datamap import DataMap

__all__ = ["RankedMap"]


class RankedMap:
    """The map of a network that several ranks train.

    Every rank records into `local`, from the first epoch to the last, and never adds another's observations to it, so
    that none counts twice. At a snapshot the ranks' maps are merged by owner, each rank keeping the samples that it
    owns or adding them to its Gram matrix. :meth:`finish` makes `local` the whole map, on every rank.
    """

    def __init__(self, local: DataMap, ranks: Ranks) -> None:
        self.local, self.ranks = local, ranks
        self._parts: SnapshotStore = local._store.empty()

    def snapshot(self, epoch: int) -> None:
        """Take a snapshot of the merged map: this rank's samples of it."""
        owned = merge_owned(self.local.state, self.ranks)
        self._parts.add(Snapshot(epoch, owned.words, owned.counts, self.local.ddof))

    def state(self) -> dict[str, Any]:
        """Return the state dictionary of the whole map on rank 0; on the others it is worth nothing."""
        merged = merge_on_first(self.local.state, self.ranks)
        plain = {name: value for name, value in self.local.state_dict().items() if not isinstance(value, Tensor)}
        return merged._asdict() | self._whole(keep=self.ranks.leads).state() | plain

    def load(self, state: dict[str, Any]) -> None:
        """Take the whole map that :meth:`state` returned: its observations on rank 0, snapshots with their owners."""
        self.local.load_state_dict(state)
        whole, self.local._store = self.local._store, self.local._store.empty()
        if not self.ranks.leads:
            for tensor in self.local.state:
                tensor.zero_()
        if whole.kind == "gram":
            gram = whole.gram(self.local.num_tasks)
            if gram is not None:
                share = torch.from_numpy(gram) if self.ranks.leads else torch.zeros(gram.shape, dtype=torch.float64)
                self._parts = whole.of_gram(whole.epochs, share)
            return
        rows = self.ranks.part(self.local.num_samples)
        at = slice(rows.start, rows.stop)
        for one in whole.kept("the owners"):
            self._parts.add(Snapshot(one.epoch, one.words[at], one.counts[at], one.ddof))

    def finish(self) -> None:
        """Make the local map whole, with all its snapshots or their Gram matrix."""
        self.local.all_reduce_(self.ranks.group)
        self.local._store = self._whole(keep=True)
        self._parts = self._parts.empty()

    def _whole(self, keep: bool) -> SnapshotStore:
        """Return a store of all ranks' parts; an empty one where it is not to be kept."""
        whole = self._parts.empty()
        if not self._parts.epochs:
            return whole
        if self._parts.kind == "gram":
            gram = self._parts.gram(self.local.num_tasks)
            assert gram is not None
            return whole.of_gram(self._parts.epochs, self.ranks.sum_(torch.from_numpy(gram)))
        for one in self._parts.kept("the whole map"):
            words, counts = (self._joined(part, keep) for part in (one.words, one.counts))
            if keep:
                whole.add(Snapshot(one.epoch, words, counts, one.ddof))
        return whole

    def _joined(self, part: Tensor, keep: bool) -> Tensor:
        """Return the owners' rows one after the other."""
        samples, world = self.local.num_samples, self.ranks.world
        whole = part.new_empty(samples if keep else 0, *part.shape[1:])
        for owner in range(world):
            rows = cut(samples, world, owner)
            values = part.clone() if owner == self.ranks.rank else part.new_empty(len(rows), *part.shape[1:])
            self.ranks.give_(values, owner)
            if keep:
                whole[rows.start : rows.stop] = values
        return whole
