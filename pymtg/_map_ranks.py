"""Data maps of several ranks merged into one: the sums of Chan et al. (1983), stretch of samples by stretch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pymtg import _map_merge, _words
from pymtg._ranks import Ranks, cut
from pymtg._reference import MapState
from pymtg._snapshot import slab_rows
from pymtg.errors import InvalidArgumentError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from pymtg.datamap import DataMap

__all__ = ["all_reduce", "merge_on_first", "merge_owned", "reduce_scatter"]


def all_reduce(data_map: DataMap, group: ProcessGroup | None) -> None:
    """Do what :meth:`pymtg.DataMap.all_reduce_` says."""
    ranks = _ranks_of(data_map, group)
    if ranks is not None:
        state = data_map.state
        for rows in _stretches(range(len(state.words)), state):
            found = _merged(state, rows, ranks, None)
            assert found is not None
            state.words[rows.start : rows.stop], state.counts[rows.start : rows.stop] = found
        ranks.sum_(state.rejected)


def reduce_scatter(data_map: DataMap, group: ProcessGroup | None) -> tuple[range, MapState]:
    """Do what :meth:`pymtg.DataMap.reduce_scatter` says."""
    ranks, samples = _ranks_of(data_map, group), data_map.num_samples
    if ranks is None:
        return range(samples), MapState(*(tensor.clone() for tensor in data_map.state))
    if ranks.world > samples:
        raise InvalidArgumentError(
            f"num_samples must be at least the number of ranks, {ranks.world}, to be shared out; got {samples}"
        )
    return ranks.part(samples), merge_owned(data_map.state, ranks)


def merge_owned(state: MapState, ranks: Ranks) -> MapState:
    """Return the merged state of the samples that this rank owns; the ranks' own states are left as they are.

    Rejected rows have no samples: their number is on rank 0.
    """
    return _merged_ranges(state, ranks, [cut(len(state.words), ranks.world, owner) for owner in range(ranks.world)])


def merge_on_first(state: MapState, ranks: Ranks) -> MapState:
    """Return the merged state of all samples on rank 0, of none on the others; theirs are left as they are."""
    everything = range(len(state.words))
    return _merged_ranges(state, ranks, [everything, *[range(0)] * (ranks.world - 1)])


def _ranks_of(data_map: DataMap, group: ProcessGroup | None) -> Ranks | None:
    """Return the ranks at work, if there are several, after they have seen that their maps are of one kind."""
    ranks = Ranks.here(group)
    if ranks is not None:
        own = json.dumps([data_map.num_samples, data_map.missing, data_map.ddof, data_map.layout.to_dict()])
        ranks.check_alike(own, "data map's layout, samples, missing and ddof")
    return ranks


def _merged_ranges(state: MapState, ranks: Ranks, ranges: list[range]) -> MapState:
    mine = ranges[ranks.rank]
    words = state.words.new_empty(len(mine), *state.words.shape[1:])
    counts = state.counts.new_empty(len(mine), *state.counts.shape[1:])
    for owner, owned in enumerate(ranges):
        for rows in _stretches(owned, state):
            found = _merged(state, rows, ranks, owner)
            if found is not None:
                at = slice(rows.start - mine.start, rows.stop - mine.start)
                words[at], counts[at] = found
    rejected = ranks.sum_on_(state.rejected.clone(), 0)
    return MapState(words, counts, rejected if ranks.leads else torch.zeros_like(rejected))


def _stretches(rows: range, state: MapState) -> Iterator[range]:
    """Cut rows into stretches whose sums in float64 take little memory."""
    step = slab_rows(state.words.shape[2])
    for start in range(rows.start, rows.stop, step):
        yield range(start, min(start + step, rows.stop))


def _merged(state: MapState, rows: range, ranks: Ranks, owner: int | None) -> tuple[Tensor, Tensor] | None:
    """Return the merged words and counts of some samples; None where another rank is their owner.

    The first sum gives counts, means and right predictions; the second, which needs the mean, the deviations.
    """
    words, counts = state.words[rows.start : rows.stop], state.counts[rows.start : rows.stop]
    n = counts.double()
    wide = n if n.dim() == 2 else n[:, None]
    mean, std = (values.double() for values in _words.unpack_values(words))
    counted = n.clamp(max=_words.MOST_COUNTED)
    parts = [n, counted, mean * wide, _words.unpack_right(words).double()]
    sums = ranks.sum_(torch.cat([part.flatten() for part in parts]))
    ends = list(accumulate(part.numel() for part in parts))
    total, all_counted, weighted, right = (
        sums[end - part.numel() : end].view_as(part) for part, end in zip(parts, ends, strict=True)
    )
    wide_total, wide_counted = (s if s.dim() == 2 else s[:, None] for s in (total, all_counted))
    merged_mean = weighted / wide_total.clamp(min=1)
    squares = wide * (std**2 + (mean - merged_mean) ** 2)
    if owner is None:
        ranks.sum_(squares)
    else:
        ranks.sum_on_(squares, owner)
        if owner != ranks.rank:
            return None
    variance = squares / wide_total.clamp(min=1)
    merged_words = _map_merge.packed(merged_mean, variance, right, wide_counted)
    return merged_words, _map_merge.merged_counts(total, missing=state.missing).to(counts.dtype)
