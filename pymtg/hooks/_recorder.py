"""The recorder: hooks, the batch at hand, and the map that it goes into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pymtg._checks import check_sample_ids
from pymtg._moving import to_device
from pymtg._once import in_backward
from pymtg._reference import MapState
from pymtg.datamap import DataMap, Snapshot
from pymtg.errors import InvalidArgumentError
from pymtg.functional import multitask_cross_entropy
from pymtg.hooks._batches import AtHand, Batch, Turn, check_seen
from pymtg.hooks._errors import RecordingError
from pymtg.hooks._loader import RecordedLoader
from pymtg.hooks._reading import MISSING, Reader, as_ids, call_arguments, joined, output_logits
from pymtg.hooks._sources import Source
from pymtg.tasks import TaskLayout

__all__ = ["Recorder"]


class Recorder:
    """Listens to a loss or a model and records its batches into a data map. Made by :func:`pymtg.record`.

    For every batch the loop gives the sample ids, *then* runs the forward. Ids serve one forward of the hooked module
    (one of each, for a dict of losses):

    - New ids before any forward replace the ones that were not used (a batch that the loop skipped).
    - A forward without ids, or a second one for the same ids, raises :class:`RecordingError`. Forwards that are not to
      count belong in ``with recorder.paused():``; with gradient accumulation give the ids of every micro-batch.
    - Ids of another length than the batch raise :class:`pymtg.errors.InvalidArgumentError`.
    - An exception in the hooked module, or raised by the recording, drops the batch: the map is as if it had not
      come. After an exception elsewhere in the step, :meth:`discard` does so.

    Copies and pickles of a hooked module are not recorded. A recorder serves one thread, and goes on with the same
    map when it is attached again.

    Attributes
    ----------
    layout : TaskLayout
        The tasks.
    data_map : DataMap
        The map that is filled. Unless it was given, it moves to the logits' device at the first batch.
    num_batches : int
        Batches recorded so far.
    recording : bool
        Whether recording is on, or was paused.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        layout: TaskLayout,
        data_map: DataMap,
        *,
        follow_device: bool,
        ignore_index: int | None = None,
    ) -> None:
        self.layout = layout
        self.data_map = data_map
        self.num_batches = 0
        self.recording = True
        self._sources = tuple(sources)
        missing = MISSING if ignore_index is None else ignore_index
        self._reader = Reader(layout.names[0], layout.num_logits, layout.num_tasks, missing, softmax=False)
        self._follow_device = follow_device
        self._handles: list[RemovableHandle] = []
        self._at_hand = AtHand()
        self._batches_at_snapshot = 0

    # Hooks

    @property
    def attached(self) -> bool:
        """Whether the hooks are in place."""
        return bool(self._handles)

    def attach(self) -> Recorder:
        """Put the hooks in place and return the recorder.

        Raises
        ------
        RecordingError
            If it is attached already, or was made without a module (:meth:`record` then works as it is).
        """
        if self.attached:
            raise RecordingError("the recorder is attached already; detach() it first")
        if not self._sources:
            raise RecordingError(
                "the recorder was made without a module to hook; call recorder.record(...) in the loop"
            )
        for source in self._sources:
            # always_call: the hook then also learns of a forward that failed
            handle = source.module.register_forward_hook(_Hook(self, source), with_kwargs=True, always_call=True)
            self._handles.append(handle)
        return self

    def detach(self) -> None:
        """Remove the hooks, after :meth:`flush`. Nothing happens where none are in place."""
        try:
            self.flush()
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            self._at_hand.forget_loops()

    def __enter__(self) -> Recorder:
        return self.attach() if self._sources else self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self.discard()  # a batch that was cut short, and no second error on top of the first
            self._at_hand.forget_left()
        self.detach()

    # What the loop says

    def ids(self, sample_ids: Tensor | Sequence[int], *, repeats: int = 0) -> None:
        """Say which samples the next forward of the hooked loss is about.

        Parameters
        ----------
        sample_ids
            ``[B]``, int64 or int32, on any device, or a sequence of integers: positions in the data map.
        repeats
            So many rows at the end of the batch are not recorded: a sampler's padding, seen elsewhere too. See
            :func:`pymtg.ranks.own_samples`.

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            For ids that are not integers or not 1-D; for repeats below 0 or above B.
        RecordingError
            If the recorder is not attached.
        MissingLabelError
            If the batch before, of a dict of losses, lacks tasks and the map is one of complete labels.
        """
        ids = as_ids(sample_ids)
        if not 0 <= repeats <= len(ids):
            raise InvalidArgumentError(f"repeats must be 0 to the number of ids, {len(ids)}; got {repeats}")
        self._open(Batch(ids, repeats=repeats))

    def batch(self, sample_ids: Tensor | Sequence[int], targets: Tensor) -> None:
        """Say which samples the next forward of the hooked *model* is about, and their labels.

        `targets` are ``[B, T]`` class numbers (``[B]`` for one task), on any device; 0/1 labels may be floating-point.
        Raises what :meth:`ids` raises, and InvalidArgumentError if a loss is hooked that gets targets of its own.
        """
        self._open(Batch(as_ids(sample_ids)))
        self.targets(targets)

    def targets(self, targets: Tensor) -> None:
        """Give the labels of the batch at hand for a hooked *model*, where its ids came from :meth:`batches`.

        Raises InvalidArgumentError if a loss is hooked that gets targets of its own, RecordingError if no ids came.
        """
        if not all(source.takes_targets for source in self._sources):
            self.discard()
            raise InvalidArgumentError("targets belong to a hooked model; a hooked loss has its own: call ids(ids)")
        if self._at_hand.batch is None:
            raise RecordingError("there are no sample ids for these targets: call recorder.batch(ids, targets)")
        self._at_hand.batch.targets = targets

    def batches(self, loader: Any) -> RecordedLoader:
        """Return `loader` with the ids taken out of its batches and given to :meth:`ids`.

        The loop stays as it was: ``for x, y in recorder.batches(loader)``. The loader is one over
        :func:`pymtg.data.with_ids` (batches ``(ids, ...)``, or dicts with ``"sample_id"``); what is left of a batch
        is what it would yield without: a tuple or list, a named tuple, a mapping of its own type. (A mapping that
        cannot be copied and changed becomes a dict, and a named tuple that a collate function made of ids and the rest
        a tuple.) Wrap last: whatever reads batches ahead would leave the ids behind. Detached, it only takes the ids
        out. The end of the loader calls :meth:`flush`. Where a model is hooked, the loop still says :meth:`targets`.
        Samples that a DistributedSampler repeats to fill up its last round are not recorded; of a subclass with an
        ``__iter__`` of its own every sample is.

        Loops may stand inside one another: when the inner one ends or is left (its iterator closed), the ids of the
        outer one's batch are at hand again. Two cannot take turns, as in ``zip``: the outer one raises
        :class:`RecordingError` where it goes on while the inner one is open.
        """
        return RecordedLoader(self, loader)

    def record(self, logits: Tensor, targets: Tensor, sample_ids: Tensor | Sequence[int]) -> None:
        """Record a batch without any hook: for losses that are called as functions.

        Nothing is recorded while paused, with gradients disabled, or in a backward pass. Raises what
        :func:`pymtg.functional.multitask_cross_entropy` raises.

        Parameters
        ----------
        logits
            ``[B, num_logits]``, as given to the loss; detached here.
        targets
            ``[B, T]`` class numbers (``[B]`` for one task); 0/1 labels may be floating-point.
        sample_ids
            ``[B]``, as for :meth:`ids`.
        """
        if self._on():
            self._write(*self._reader.read(logits, targets), as_ids(sample_ids))

    def discard(self) -> None:
        """Forget the batch at hand: its ids, and the tasks seen so far of a dict of losses."""
        self._at_hand.discard()

    def flush(self) -> None:
        """End the batch at hand: record it if tasks of a dict of losses were seen, drop its ids if none was.

        Raises
        ------
        MissingLabelError
            If tasks were not seen and the map is one of complete labels.
        RecordingError
            If a module that stands for several tasks was not called for all of them.
        """
        for batch in self._at_hand.taken():
            check_seen(batch, self.layout.names, self._sources, missing=self.data_map.missing)
            self._write(*joined(batch.parts, self.layout), batch.ids, batch.repeats)

    def snapshot(self, epoch: int) -> Snapshot:
        """End the batch at hand and take a snapshot of the map: see :meth:`pymtg.DataMap.snapshot`.

        Raises
        ------
        RecordingError
            If nothing was recorded since the snapshot before: the loop does not call the hooked module.
        """
        self.flush()
        if self.num_batches == self._batches_at_snapshot:
            raise RecordingError(
                f"nothing was recorded before snapshot({epoch!r}): the hooked module was not called in training mode "
                "with gradients enabled, recording was paused, or the module was compiled before it was hooked"
            )
        taken = self.data_map.snapshot(epoch)
        self._batches_at_snapshot = self.num_batches
        return taken

    # On and off

    def pause(self) -> None:
        """Record nothing until :meth:`resume`."""
        self.recording = False

    def resume(self) -> None:
        """Record again."""
        self.recording = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing inside a ``with`` block."""
        before, self.recording = self.recording, False
        try:
            yield
        finally:
            self.recording = before

    # From a forward to the map

    def _on(self) -> bool:
        return self.recording and torch.is_grad_enabled() and not in_backward()

    def _open(self, batch: Batch) -> None:
        if not self.attached:
            raise RecordingError("the recorder is not attached: use it in a with statement, or call attach()")
        self.flush()
        self._at_hand.batch = batch

    # Loops over batches(), one inside the other

    def _advance(self, turn: Turn, ids: Tensor, repeats: int) -> None:
        """Take the ids of the next batch of a loop; with the first, the batch of the loop around it is kept."""
        self._at_hand.begin(turn)
        self.ids(ids, repeats=repeats)

    def _end(self, turn: Turn) -> None:
        """End the last batch of a loop."""
        if self._at_hand.is_last_of(turn):
            self.flush()

    def _close(self, turn: Turn) -> None:
        """Put the batch of the loop around this one back. Without one, the ids at hand stay: this raises nothing."""
        self._at_hand.close(turn)

    def _see(self, source: Source, module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        """Take what a hooked module was called with, or returned."""
        if not (self._on() and module.training):
            return
        if module is not source.module:  # a replica or a shallow copy shares the table of hooks
            if getattr(module, "_is_replica", False):
                raise RecordingError(
                    "the hooked module runs as a replica inside nn.DataParallel, on a part of the batch; hook the "
                    "nn.DataParallel module, or the loss"
                )
            return
        if output is None:
            self.discard()  # the forward raised
            return
        batch, self._at_hand.batch = self._at_hand.batch, None
        if batch is None:
            raise RecordingError(
                ("the sample ids were used by an earlier forward" if self._at_hand.used else "there are no sample ids")
                + f" for this forward of {type(module).__name__}: call recorder.ids(ids) once for every batch, or wrap "
                "a forward that is not to count in recorder.paused()"
            )
        if batch.targets is not None:
            logits, targets = output_logits(output, self.layout), batch.targets
        else:
            logits, targets = call_arguments(module, args, kwargs)
        # Whatever raised from here on, the batch is gone; a task of several puts it back.
        if source.named:
            self._take(batch, source, logits, targets)
        else:
            self._write(*source.readers[0].read(logits, targets), batch.ids, batch.repeats)

    def _take(self, batch: Batch, source: Source, logits: Any, targets: Any) -> None:
        """Keep the part of one task; with the last one, record the batch."""
        reader = next((reader for reader in source.readers if reader.name not in batch.parts), None)
        if reader is None:
            raise RecordingError(
                f"the loss of task {source.readers[0].name!r} was called again for the same sample ids: call "
                "recorder.ids(ids) for every batch, or wrap a forward that is not to count in recorder.paused()"
            )
        part = reader.read(logits, targets)
        check_sample_ids(batch.ids, part[0].shape[0], batch.ids.device)
        last = len(batch.parts) + 1 == self.layout.num_tasks
        # What waits for the other tasks is copied: the loop may work on its logits in place.
        batch.parts[reader.name] = part if last else (part[0].clone(), part[1].clone())
        if last:
            self._write(*joined(batch.parts, self.layout), batch.ids, batch.repeats)
        else:
            self._at_hand.batch = batch

    def _write(self, logits: Tensor, targets: Tensor, ids: Tensor, repeats: int = 0) -> None:
        if self._follow_device:
            if self.data_map.device != logits.device:
                self.data_map.state = MapState(*(tensor.to(logits.device) for tensor in self.data_map.state))
            self._follow_device = False
        ids = to_device(ids, logits.device)
        if repeats:
            check_sample_ids(ids, logits.shape[0], ids.device)
            logits, targets, ids = (rows[: len(ids) - repeats] for rows in (logits, targets, ids))
        multitask_cross_entropy(logits, targets, self.layout, data_map=self.data_map, sample_ids=ids)
        self._at_hand.used = True
        self.num_batches += 1

    def __getstate__(self) -> dict[str, Any]:
        # A copy starts detached, and in between batches.
        return {**self.__dict__, "_handles": [], "_at_hand": AtHand()}

    def __repr__(self) -> str:
        modules = [type(source.module).__name__ for source in self._sources]
        state = ("recording" if self.recording else "paused") if self.attached else "detached"
        return f"Recorder({', '.join(modules)}; {state}, {self.num_batches} batches, {self.data_map!r})"


class _Hook:
    """What stands in a module's table of hooks. Copies and pickles of it, and so of the module, do nothing."""

    def __init__(self, recorder: Recorder | None = None, source: Source | None = None) -> None:
        self.recorder, self.source = recorder, source

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self.recorder is not None and self.source is not None:
            # Never traced into a graph. The wrapper that sees to it costs microseconds, so eager calls go without, and
            # brings torch's compiler along, seconds to import, so that it is made where something is compiled.
            see = _untraced() if torch.compiler.is_compiling() else Recorder._see
            see(self.recorder, self.source, module, args, kwargs, output)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Hook, ())


_wrapped: list[Any] = []  # a list and no functools.cache, of which the compiler warns


def _untraced() -> Any:
    if not _wrapped:
        _wrapped.append(torch.compiler.disable(Recorder._see))  # type: ignore[no-untyped-call]
    return _wrapped[0]
