"""Data maps in host memory for logits on a device: a batch's probabilities travel, and are recorded by the C++ backend.

Nothing waits for the device: probabilities are copied on a stream of their own into page-locked memory, and a thread
records them once they have arrived, while the device goes on. One thread, batch by batch, so a sample that comes
again in the next step finds what the last one wrote. Reading the map waits for all that is on its way.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor

from pymtg import _cpp
from pymtg._batch_map import batch_map, signed_probabilities
from pymtg._map_update import note_ids
from pymtg._reference import MapState, check_ids
from pymtg.tasks import TaskLayout

MOST_ON_THE_WAY = 4
"""Batches between the device and the map: with more, a step waits for the oldest."""

_couriers: weakref.WeakSet[Courier] = weakref.WeakSet()


class Courier:
    """Brings batches from a device to a map's state in host memory."""

    def __init__(self, state: MapState) -> None:
        self.state = state
        self._on_the_way: deque[Future[None]] = deque()
        self._worker: ThreadPoolExecutor | None = None
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        _couriers.add(self)

    def begin(self, sample_ids: Tensor, device: torch.device) -> tuple[MapState, Tensor]:
        """Return a map of a batch on a device, for a loss to record into, and the ids to record at there."""
        samples, _, tasks = self.state.words.shape
        if not sample_ids.is_cuda:
            check_ids(sample_ids, samples)
        rows = len(sample_ids)
        return batch_map(rows, tasks, device, missing=self.state.missing), torch.arange(rows, device=device)

    def take(self, batch: MapState, valid: Tensor, ids: Tensor, layout: TaskLayout) -> None:
        """Record what a loss put into a map that :meth:`begin` gave; `valid` ``[B, T]`` says which labels are there."""
        if ids.is_cuda:
            ids = note_ids(ids, self.state.words.shape[0], layout)
        unseen = batch.counts == 0
        refused = unseen.all(1) & valid.any(1) if batch.missing else unseen
        self.send(signed_probabilities(batch), refused, ids)

    def record(self, p: Tensor, hit: Tensor, there: Tensor, ids: Tensor, refused: Tensor) -> None:
        """Record probabilities as a backend does; `ids` may be written to afterwards."""
        signed = torch.where(hit, -p.abs(), p.abs())
        self.send(torch.where(there, signed, torch.nan), refused, ids.clone())

    def send(self, signed: Tensor, refused: Tensor, ids: Tensor) -> None:
        """Record probabilities float32 ``[B, T]``: the sign bit where right, NaN where not to be recorded.

        `refused` ``[B]`` marks rows to leave out and count. What is on a GPU is read later: nobody may write to
        it before.
        """
        while len(self._on_the_way) >= MOST_ON_THE_WAY:
            self._on_the_way.popleft().result()
        arrived, event = self._copied((signed, refused, ids))
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="pymtg-map")
        self._on_the_way.append(self._worker.submit(self._recorded, arrived, event))

    def settle(self) -> None:
        """Wait until everything on its way is recorded; raise what went wrong there."""
        while self._on_the_way:
            self._on_the_way.popleft().result()

    def _copied(self, tensors: tuple[Tensor, ...]) -> tuple[list[Tensor], torch.cuda.Event | None]:
        if not any(tensor.is_cuda for tensor in tensors):
            return [tensor.clone() for tensor in tensors], None
        device = tensors[0].device
        stream = self._streams.get(device)
        if stream is None:
            stream = self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        arrived = []
        with torch.cuda.stream(stream):
            for tensor in tensors:
                staging = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                arrived.append(staging.copy_(tensor, non_blocking=tensor.is_cuda))
                if tensor.is_cuda:
                    tensor.record_stream(stream)  # its memory is not given away before it is read
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(stream)
        return arrived, event

    def _recorded(self, arrived: list[Tensor], event: torch.cuda.Event | None) -> None:
        if event is not None:
            event.synchronize()
        signed, refused, ids = arrived
        refused = refused.bool()
        # Ids were checked, on the device where they are there: a stray one was noted, and counts nowhere.
        here = (ids >= 0) & (ids < self.state.words.shape[0])
        signed, refused, ids = signed[here], refused[here], ids[here]
        _cpp.record(self.state, signed.abs(), torch.signbit(signed), ~torch.isnan(signed), ids, refused)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy begins with: nothing on its way."""
        self.settle()
        return {"state": self.state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["state"])  # type: ignore[misc]


def _before_fork() -> None:
    for courier in list(_couriers):
        wait(courier._on_the_way)  # what went wrong there is left to be raised where the map is read


def _in_forked() -> None:
    for courier in list(_couriers):
        courier._worker = None  # a process that was forked does not have the thread


if hasattr(os, "register_at_fork"):  # where processes can be forked
    os.register_at_fork(before=_before_fork, after_in_child=_in_forked)
