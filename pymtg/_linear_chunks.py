"""Chunks of a linear head's logits, one after the other: their losses, their gradients, the map they are recorded into.

The map is recorded into once all chunks have been seen: a row that one of them refuses is left out of all. Nothing here
waits for a GPU, but for what a backend reads that does not defer its checks.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from pymtg._backend import backend_at_work
from pymtg._batch_map import batch_map, signed_probabilities
from pymtg._checks import labels_there
from pymtg._faults import check, debugging
from pymtg._map_update import note_places
from pymtg._once import in_backward
from pymtg._ops import arithmetic_dtype
from pymtg._reference import MapState, check_complete, check_ids
from pymtg.tasks import TaskLayout

_CHUNK = {"cpu": 2**19, "cuda": 2**24}
"""Logits computed at once by default: on the CPU what its caches hold, on a GPU what keeps it busy."""


class Chunk(NamedTuple):
    """A run of whole tasks."""

    tasks: slice
    columns: slice
    layout: TaskLayout


_cuts: dict[tuple[int, int], tuple[tuple[Chunk, ...], int]] = {}


class Head:
    """One pass over the chunks of a head's logits."""

    def __init__(
        self,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        layout: int,
        ignore_index: int,
        max_columns: int | None,
        backend: str,
    ) -> None:
        self.features, self.weight, self.bias = features, weight, bias
        self.targets, self.ignore_index = targets, ignore_index
        self.layout = TaskLayout.with_handle(layout)
        self.backend = backend_at_work(backend, features.device)
        self.rows = rows = features.shape[0]
        if max_columns is None:
            max_columns = max(1, _CHUNK.get(features.device.type, _CHUNK["cuda"]) // max(1, rows))
        self.chunks, widest = _chunks(self.layout, max_columns)
        # Each chunk's logits in the place of the last one's: allocations of their own would tear up the heap.
        self.buffer = features.new_empty(rows * widest)
        self.recording: _Recording | None = None

    def begin(
        self, sample_ids: Tensor | None, words: Tensor | None, counts: Tensor | None, rejected: Tensor | None
    ) -> None:
        """Record what is seen from here on, if there is a map and this is no checkpointed forward computed again.

        Raises for ids and missing labels that the map cannot take, but where the backend defers.
        """
        if sample_ids is None or words is None or counts is None or rejected is None or in_backward():
            return
        state = MapState(words, counts, rejected)
        if not self.backend.defers:
            check_ids(sample_ids, words.shape[0])
            if not state.missing:
                check_complete(labels_there(self.targets, self.ignore_index), self.layout)
        signed = self.features.new_empty(self.targets.shape, dtype=torch.float32)
        self.recording = _Recording(state, sample_ids, torch.arange(self.rows, device=signed.device), signed)

    def part(self, values: Tensor, run: slice) -> Tensor:
        """Return a chunk's part of values: all, where there is one chunk only."""
        return values if len(self.chunks) == 1 else values[run]

    def targets_of(self, chunk: Chunk) -> Tensor:
        """Return a chunk's targets [B, tasks]."""
        return self.targets if len(self.chunks) == 1 else self.targets[:, chunk.tasks]

    def logits(self, chunk: Chunk) -> Tensor:
        """Return a chunk's logits [B, C], which are there until the next call."""
        columns = self.part(self.weight, chunk.columns).T
        width = columns.shape[1]
        out = self.part(self.buffer, slice(self.rows * width)).view(self.rows, width)
        if self.bias is None:
            return torch.mm(self.features, columns, out=out)
        return torch.addmm(self.part(self.bias, chunk.columns), self.features, columns, out=out)

    def losses(self, logits: Tensor, chunk: Chunk, weights: Tensor | None, need: bool) -> tuple[Tensor, Tensor]:
        """Return a chunk's losses and, where needed, what the backend leaves; note its gold probabilities."""
        recording = self.recording
        batch = None if recording is None else recording.batch(chunk)
        result = self.backend.cross_entropy(
            logits,
            self.targets_of(chunk),
            chunk.layout,
            ignore_index=self.ignore_index,
            weights=weights,
            state=batch,
            sample_ids=None if recording is None else recording.rows,
            need_gradient=need,
        )
        if recording is not None and batch is not None:
            recording.signed[:, chunk.tasks] = signed_probabilities(batch)
        return result

    def gradient(self, logits: Tensor, chunk: Chunk, upstream: Tensor, left: Tensor) -> Tensor:
        """Return the gradient of a chunk's logits, in their dtype."""
        targets = self.targets_of(chunk)
        if self.backend.gradient is not None:
            return self.backend.gradient(
                left, logits, targets, upstream, None, chunk.layout, ignore_index=self.ignore_index
            )
        _, gradient = self.backend.cross_entropy(
            logits, targets, chunk.layout, ignore_index=self.ignore_index, weights=upstream, need_gradient=True
        )
        return gradient.to(logits.dtype)

    def end(self, losses: Tensor) -> None:
        """Record what all chunks have seen; losses [T] that a fault spoils become NaN, where the backend defers."""
        if debugging():
            check(self.features.device)
        if self.recording is not None:
            self.recording.end(self, losses)
            if debugging():
                check(self.features.device)


class _Recording(NamedTuple):
    """Where the gold probabilities of a batch are gathered, and what they go into at its end."""

    state: MapState
    ids: Tensor
    rows: Tensor
    """0..B - 1: the samples of a map of the batch."""
    signed: Tensor
    """float32 [B, T]: the sign bit where right, NaN where there is no label or the row is refused."""

    def batch(self, chunk: Chunk) -> MapState:
        """Return an empty map of the batch for a chunk's tasks."""
        return batch_map(len(self.rows), chunk.layout.num_tasks, self.rows.device, missing=True)

    def end(self, head: Head, losses: Tensor) -> None:
        """Record, without rows that a chunk has refused."""
        ids = self.ids.long()
        there = labels_there(head.targets, head.ignore_index)
        refused = (self.signed.isnan() & there).any(1)
        if head.backend.defers:
            samples = self.state.words.shape[0]
            losses.masked_fill_(((ids < 0) | (ids >= samples)).any(), torch.nan)
            if not self.state.missing:
                losses.masked_fill_(~there.all(0), torch.nan)
            ids = note_places(there, ids, samples, head.layout, missing=self.state.missing)
        head.backend.record(self.state, self.signed.abs(), self.signed.signbit(), there, ids, refused)


class Gradients:
    """Sums over the chunks of the gradients of features, weight and bias: those that are needed."""

    def __init__(self, features: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...]) -> None:
        self.features, self.weight = features, weight
        self.needed = any(needed)
        wide = arithmetic_dtype(features.dtype)
        self.of_features = features.new_zeros(features.shape, dtype=wide) if needed[0] else None
        self.of_weight = weight.new_empty(weight.shape) if needed[1] else None
        self.of_bias = None if bias is None or not needed[2] else bias.new_empty(bias.shape)

    def add(self, chunk: Chunk, gradient: Tensor) -> None:
        """Add a chunk's share, given the gradient of its logits [B, C] in their dtype."""
        if self.of_features is not None:
            if self.of_features.dtype == gradient.dtype:
                self.of_features.addmm_(gradient, self.weight[chunk.columns])
            else:
                self.of_features += gradient @ self.weight[chunk.columns]
        if self.of_weight is not None:
            torch.mm(gradient.T, self.features, out=self.of_weight[chunk.columns])
        if self.of_bias is not None:
            self.of_bias[chunk.columns] = gradient.sum(0)

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients, each in the dtype of what it belongs to; an empty tensor for one not needed."""
        none = self.features.new_empty
        return (
            none(0) if self.of_features is None else self.of_features.to(self.features.dtype),
            none(0) if self.of_weight is None else self.of_weight,
            none(0) if self.of_bias is None else self.of_bias,
        )


def _chunks(layout: TaskLayout, columns: int) -> tuple[tuple[Chunk, ...], int]:
    """Cut the tasks into chunks of at most so many columns, and say how many the widest has; kept while the layout is.

    Chunks have layouts of their own, so that what a backend knows of one is found again in the next step.
    """
    key = (layout.handle, min(columns, layout.num_logits))
    found = _cuts.get(key)
    if found is None:
        cuts, offsets = [0], layout.offsets
        for t in range(1, layout.num_tasks):
            if offsets[t + 1] - offsets[cuts[-1]] > columns:
                cuts.append(t)
        pairs = list(zip(cuts, [*cuts[1:], layout.num_tasks], strict=True))
        found = _cuts[key] = (
            tuple(Chunk(slice(a, b), slice(offsets[a], offsets[b]), _part(layout, a, b)) for a, b in pairs),
            max(offsets[b] - offsets[a] for a, b in pairs),
        )
        weakref.finalize(layout, _cuts.pop, key, None)
    return found


def _part(layout: TaskLayout, first: int, end: int) -> TaskLayout:
    part = layout.select(range(first, end))
    object.__setattr__(part, "first_column", first)
    return part
