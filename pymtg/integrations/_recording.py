"""What the integrations share: the map that somebody else's trainer fills, over its epochs, ranks and checkpoints."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pymtg._checks import check_classification, check_sample_ids
from pymtg._moving import to_device
from pymtg._ranks import Ranks
from pymtg._reference import MapState
from pymtg.datamap import DataMap
from pymtg.errors import InvalidArgumentError, InvalidTypeError, RankError
from pymtg.functional import multitask_cross_entropy
from pymtg.hooks._reading import MISSING, Reader, as_ids
from pymtg.integrations._layouts import layout_of_batch
from pymtg.tasks import TaskLayout

__all__ = ["MapRecording"]


class MapRecording:
    """A data map, what this rank has not merged into it yet, and the epoch that is under way.

    On one rank batches go into :attr:`data_map` itself. On several, each rank records into a map of its own, which
    :meth:`merge` adds to :attr:`data_map`, the same on every rank, and empties. Every observation is added once,
    however often that happens.

    Parameters
    ----------
    layout, num_samples
        Of the map; None to take them from the first batch and from what :meth:`expect` said.
    data_map
        A map to go on with, in place of a new one.
    missing, ddof, snapshots, directory
        Of the new map, as in :class:`pymtg.DataMap`.
    ignore_index
        The label that stands for "missing", -100 by default.
    snapshot_epochs
        Which epochs, counted from 1, end with a snapshot: every n-th (an integer), those listed, or none (None).

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For options that contradict each other or are out of range.
    """

    def __init__(
        self,
        layout: TaskLayout | None = None,
        num_samples: int | None = None,
        *,
        data_map: DataMap | None = None,
        missing: bool = False,
        ddof: int = 0,
        ignore_index: int | None = None,
        snapshot_epochs: int | Iterable[int] | None = 1,
        snapshots: str = "memory",
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        self.layout = _checked_layout(layout)
        self._asked_samples = num_samples
        self._expected_samples: int | None = None
        self.ignore_index = MISSING if ignore_index is None else ignore_index
        self.snapshot_epochs = _checked_epochs(snapshot_epochs)
        self._options: dict[str, Any] = {"missing": missing, "ddof": ddof}
        self._store: dict[str, Any] = {"snapshots": snapshots, "directory": directory}
        # what the map itself would refuse is refused now, not at the first batch
        DataMap(1 if num_samples is None else num_samples, TaskLayout.binary(["any"]), **self._options, **self._store)
        if isinstance(self.ignore_index, bool) or not isinstance(self.ignore_index, int):
            raise InvalidTypeError(f"ignore_index must be an integer; got {ignore_index!r}")
        self._given = data_map
        if data_map is not None:
            _check_map(data_map, layout, num_samples)
            if data_map.snapshot_epochs and self.snapshot_epochs:
                raise InvalidArgumentError(
                    "data_map must hold no snapshots, whose epochs those to come would repeat, unless "
                    f"snapshot_epochs=None; it has some of the epochs {list(data_map.snapshot_epochs)[:6]}"
                )
        self.data_map: DataMap | None = data_map
        self._own: DataMap | None = None
        self._new = False  # whether _own holds something
        self._reader: Reader | None = None
        self._epoch = 1
        self._open: int | None = None  # the epoch that was recorded into and has not ended
        self.num_batches = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch.multiprocessing hands tensors over in memory of all processes: each would merge the sum of all into it.
        self.__dict__.update(state)
        for one in (self.data_map, self._own):
            if one is not None and one.state.words.is_cpu and one.state.words.is_shared():  # type: ignore[no-untyped-call]
                one.state = MapState(*(tensor.clone() for tensor in one.state))

    # Recording

    def expect(self, num_samples: int) -> None:
        """Say how many samples the training set has, for the next map to begin, unless one was told."""
        self._expected_samples = num_samples

    @property
    def num_samples(self) -> int | None:
        """M of a map that begins now; None if it is not known."""
        return self._expected_samples if self._asked_samples is None else self._asked_samples

    def warn_beyond(self, last: int, limit: str) -> None:
        """Warn of snapshots asked for after the `last` epoch, which `limit`, an argument of the trainer, sets."""
        asked = [self.snapshot_epochs] if isinstance(self.snapshot_epochs, int) else sorted(set(self.snapshot_epochs))
        beyond = [epoch for epoch in asked if epoch > last]
        if beyond:
            warnings.warn(
                f"snapshot_epochs must not go beyond {limit} ({last}); got {', '.join(map(str, beyond))}: "
                "this training ends before, without a snapshot there",
                stacklevel=3,
            )

    def record(self, logits: Any, targets: Any, sample_ids: Any, rows: int | list[int] | None = None) -> None:
        """Record a batch, or its first `rows` rows, or those listed, where the others are copies that fill it up.

        `logits` are ``[B, num_logits]``, `targets` ``[B, T]`` (``[B]`` for one task), `sample_ids` ``[B]``; they may
        be on different devices. Raises what :meth:`pymtg.hooks.Recorder.record` raises.
        """
        if self.data_map is None:
            self._begin(logits, targets)
        assert self.data_map is not None
        reader = self._reader_of(self.data_map.layout)
        logits, targets = reader.read(logits, targets)  # the default label where one is missing, whichever was given
        ids = to_device(as_ids(sample_ids), logits.device)
        if rows is not None and (not isinstance(rows, int) or rows < logits.shape[0]):
            check_sample_ids(ids, logits.shape[0], logits.device)
            kept = slice(rows) if isinstance(rows, int) else torch.tensor(rows, dtype=torch.int64, device=ids.device)
            logits, targets, ids = logits[kept], targets[kept], ids[kept]
        into = self._into(logits.device)
        multitask_cross_entropy(logits, targets, into.layout, data_map=into, sample_ids=ids)
        self._new = True
        self._open = self._epoch
        self.num_batches += 1

    # Epochs and ranks

    def begin_epoch(self, epoch: int) -> None:
        """Say that `epoch`, counted from 1, begins or goes on; one before that never came to its end is ended first."""
        if self._open is not None and self._open != epoch:
            self.end_epoch()
        self._epoch = epoch

    def end_epoch(self) -> None:
        """Merge the ranks and take the snapshot if one is due. Nothing happens where nothing was recorded since.

        An epoch that was cut short, with a snapshot, and goes on in a later run keeps that snapshot.
        """
        self.merge()
        epoch, self._open = self._open, None
        if epoch is not None and self.data_map is not None and self._is_due(epoch):
            taken = self.data_map.snapshot_epochs
            if not taken or epoch > taken[-1]:
                self.data_map.snapshot(epoch)

    def merge(self) -> None:
        """Add what every rank recorded since the last merge to :attr:`data_map`. Every rank has to call this.

        Raises
        ------
        RankError
            On every rank, if some have recorded and others never did, or their maps differ.
        """
        ranks = Ranks.here()
        if ranks is None:
            return
        mine = torch.tensor([[self.data_map is not None, self._new, self._open or 0]])
        has_map, new, open_epochs = ranks.joined(mine).unbind(1)
        if bool((has_map != has_map[0]).any()):
            without = int((has_map == 0).nonzero()[0])
            raise RankError(f"every rank must record batches of an epoch, or none; rank {without} recorded none")
        self._open = int(open_epochs.max()) or None
        if self.data_map is not None and bool(new.any()):
            own = self._into(self.data_map.device)
            self.data_map.merge_(own.all_reduce_())
            own.reset()
            self._new = False

    def reset(self) -> None:
        """Begin anew, with an empty map, or with the one that was handed over as it is."""
        self.data_map = self._given
        self._forget_pending()

    # Keeping

    def state_dict(self) -> dict[str, Any]:
        """Return the merged map and the epoch under way. What this rank has not merged is not in it."""
        return {"data_map": None if self.data_map is None else self.data_map.state_dict(), "open_epoch": self._open}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises
        ------
        InvalidArgumentError
            For a state of other tasks, samples or options than this recording was built with; it is then unchanged.
        """
        if not {"data_map", "open_epoch"} <= set(state):
            raise InvalidArgumentError(f"state must hold data_map and open_epoch; got {sorted(map(str, state))}")
        if state["data_map"] is not None:
            self.restore(state["data_map"])
        else:
            self.reset()
        self._open = state["open_epoch"]

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a map's state dictionary; raises as :meth:`load_state_dict` does."""
        if self._given is not None:
            self._given.load_state_dict(state)
            self.data_map = self._given
        else:
            self.data_map = self._map_of(state)
        self._forget_pending()

    def resume_after(self, epoch: int) -> None:
        """Say that a restored map holds `epoch` to its last batch: the next call ends it where that was left out."""
        self._open = epoch if epoch > 0 else None

    # Parts

    def _begin(self, logits: Any, targets: Any) -> None:
        layout = layout_of_batch(logits, targets) if self.layout is None else self.layout
        if self.num_samples is None:
            raise InvalidArgumentError("num_samples must be given: the size of the training set is not known")
        self.data_map = DataMap(self.num_samples, layout, **self._options, **self._store)

    def _into(self, device: torch.device) -> DataMap:
        """Return the map that batches go into, on the device of the logits."""
        assert self.data_map is not None
        if self.data_map.device != device:
            self.data_map.to(device)
        if Ranks.here() is None:
            return self.data_map
        if self._own is None:
            like = self.data_map
            self._own = DataMap(like.num_samples, like.layout, device=device, ddof=like.ddof, missing=like.missing)
        return self._own if self._own.device == device else self._own.to(device)

    def _reader_of(self, layout: TaskLayout) -> Reader:
        if self._reader is None:
            check_classification(layout)
            self._reader = Reader(
                layout.names[0], layout.num_logits, layout.num_tasks, self.ignore_index, softmax=False
            )
        return self._reader

    def _map_of(self, state: Mapping[str, Any]) -> DataMap:
        words, counts = state.get("words"), state.get("counts")
        if not isinstance(words, Tensor) or not isinstance(counts, Tensor) or words.dim() != 3 or "layout" not in state:
            raise InvalidArgumentError("state must be that of a data map; its words, counts or layout are absent")
        data_map = DataMap(
            self.num_samples if self.num_samples is not None else words.shape[0],
            TaskLayout.from_dict(state["layout"]) if self.layout is None else self.layout,
            **self._options,
            **self._store,
        )
        data_map.load_state_dict(state)
        return data_map

    def _forget_pending(self) -> None:
        self._own, self._new, self._reader, self._open, self._epoch = None, False, None, None, 1

    def _is_due(self, epoch: int) -> bool:
        if isinstance(self.snapshot_epochs, int):
            return epoch % self.snapshot_epochs == 0
        return epoch in self.snapshot_epochs


def _checked_layout(layout: TaskLayout | None) -> TaskLayout | None:
    if layout is not None and not isinstance(layout, TaskLayout):
        raise InvalidTypeError(f"layout must be a TaskLayout or None; got {type(layout).__name__}")
    return layout


def _check_map(data_map: DataMap, layout: TaskLayout | None, num_samples: int | None) -> None:
    if not isinstance(data_map, DataMap):
        raise InvalidTypeError(f"data_map must be a DataMap; got {type(data_map).__name__}")
    if layout is not None and data_map.layout != layout:
        raise InvalidArgumentError("layout must be that of data_map or left out; theirs differ")
    if num_samples is not None and data_map.num_samples != num_samples:
        raise InvalidArgumentError(
            f"num_samples must be that of data_map ({data_map.num_samples}) or left out; got {num_samples}"
        )


def _checked_epochs(epochs: int | Iterable[int] | None) -> int | Sequence[int]:
    if epochs is None:
        return ()
    if isinstance(epochs, (bool, str, bytes)):
        raise InvalidTypeError(f"snapshot_epochs must be an integer, a list of integers or None; got {epochs!r}")
    if isinstance(epochs, int):
        if epochs < 1:
            raise InvalidArgumentError(f"snapshot_epochs must be at least 1 (every epoch); got {epochs}")
        return epochs
    try:
        chosen = tuple(epochs)
    except TypeError:
        raise InvalidTypeError(
            f"snapshot_epochs must be an integer, a list of integers or None; got {epochs!r}"
        ) from None
    for epoch in chosen:
        if isinstance(epoch, bool) or not isinstance(epoch, int):
            raise InvalidTypeError(f"snapshot_epochs must hold integers; got {epoch!r}")
        if epoch < 1:
            raise InvalidArgumentError(f"snapshot_epochs are counted from 1; got {epoch}")
    return chosen
