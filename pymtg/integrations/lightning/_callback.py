"""The callback that records a data map while somebody's LightningModule is fitted."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from pymtg.datamap import DataMap
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.hooks import RecordingError
from pymtg.integrations._optional import needs
from pymtg.integrations._recording import MapRecording
from pymtg.integrations.lightning._loaders import Padding, gives_ids, size_of
from pymtg.integrations.lightning._mixin import DataMapMixin
from pymtg.tasks import TaskLayout

try:
    from lightning.pytorch import Callback, LightningDataModule
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningDataModule
    except ImportError:
        raise needs("lightning", "lightning", "lightning") from None

__all__ = ["DataMapCallback"]

Where = str | int | Callable[[Any, Any], Any]

_IDS = "sample_id"


class DataMapCallback(Callback):  # type: ignore[misc, unused-ignore]
    """Records a data map during ``trainer.fit``.

    After every training batch the callback takes the logits, the targets and the sample ids, from what
    ``training_step`` returned (``{"loss": ..., "logits": ..., ...}``) or, what is not there, from the batch. A module
    with :class:`DataMapMixin` returns nothing and says ``self.record(logits, targets)``. Validation, the sanity check
    before it and whatever runs outside training are not seen. Every micro-batch of an accumulated gradient is
    recorded, once. Half-precision logits are read as they are and their probabilities computed in float32.

    Checkpoints hold the map; ``trainer.fit(ckpt_path=...)`` goes on with it. A checkpoint taken within an epoch goes
    on as exactly as the loader does: Lightning begins one that cannot be resumed at its start. A fit from the start,
    by a trainer that has seen no batch, begins an empty map.

    With several processes each records the samples that it sees. Their maps are added up at the end of an epoch and at
    checkpoints, so that :attr:`data_map` is the same everywhere. The samples that a ``DistributedSampler`` repeats to
    even the ranks out are recorded once; all that a subclass with an ``__iter__`` of its own draws is recorded.

    Parameters
    ----------
    layout
        The tasks; by default read off the first batch, where only one reading is possible: class numbers ``[B]`` with
        logits ``[B, C]`` are one task, targets ``[B, T]`` with logits ``[B, T]`` are binary tasks.
    num_samples
        M; by default the size of the training set.
    logits, targets, ids
        Where to find them: a key of what ``training_step`` returned or of the batch, a position in the batch, or a
        function ``(outputs, batch) -> tensor``. Without `ids`, those of :func:`pymtg.data.with_ids` are found too.
    snapshot_epochs
        Which epochs, counted from 1, end with a snapshot: every n-th, those listed, or none (None). A UserWarning names
        those beyond the trainer's ``max_epochs``.
    data_map
        A map to go on with, in place of a new one.
    missing, ddof, snapshots, directory
        Of the new map, as in :class:`pymtg.DataMap`.
    ignore_index
        The label that stands for "missing", -100 by default. NaN stands for it too in floating-point targets.
    name
        Tells several of these callbacks in one trainer apart: it is part of the ``state_key``.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For options out of range or of the wrong type; while fitting, for what does not fit the layout.
    RecordingError
        While fitting, where logits, targets or ids are not found, or where the data module has a hook of its own in the
        place of :class:`DataMapMixin`'s.

    Examples
    --------
    >>> callback = DataMapCallback(snapshot_epochs=5, targets=1)  # the batch is (inputs, targets, ids)
    >>> print(callback.data_map)
    None
    """

    def __init__(
        self,
        layout: TaskLayout | None = None,
        num_samples: int | None = None,
        *,
        logits: Where = "logits",
        targets: Where = "targets",
        ids: Where = _IDS,
        snapshot_epochs: int | Iterable[int] | None = 1,
        data_map: DataMap | None = None,
        missing: bool = False,
        ddof: int = 0,
        ignore_index: int | None = None,
        snapshots: str = "memory",
        directory: str | os.PathLike[str] | None = None,
        name: str = "data_map",
    ) -> None:
        super().__init__()
        for argument, where in (("logits", logits), ("targets", targets), ("ids", ids)):
            if isinstance(where, bool) or not (isinstance(where, (str, int)) or callable(where)):
                raise InvalidTypeError(
                    f"{argument} must be a key, a position in the batch, or a function of both; got {where!r}"
                )
        if not isinstance(name, str) or not name:
            raise InvalidArgumentError(f"name must be a non-empty string; got {name!r}")
        self.name = name
        self._where: dict[str, Where] = {"logits": logits, "targets": targets, "ids": ids}
        self._padding = Padding()
        self._recording = MapRecording(
            layout,
            num_samples,
            data_map=data_map,
            missing=missing,
            ddof=ddof,
            ignore_index=ignore_index,
            snapshot_epochs=snapshot_epochs,
            snapshots=snapshots,
            directory=directory,
        )

    @property
    def data_map(self) -> DataMap | None:
        """The map; None before the first batch. With several processes, as of the last merge."""
        return self._recording.data_map

    @property
    def num_batches(self) -> int:
        """Batches recorded by this process."""
        return self._recording.num_batches

    # What Lightning calls

    @property
    def state_key(self) -> str:
        """What this callback's state is called in a checkpoint."""
        return str(self._generate_state_key(name=self.name))

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Warn, on one rank, of snapshots asked for beyond the last epoch, and of a map that does not come back."""
        launcher = getattr(getattr(trainer, "strategy", None), "launcher", None)
        started = getattr(launcher, "_start_method", None)  # None where it starts none from Python
        if trainer.is_global_zero and started is not None:
            warnings.warn(
                f"the trainer's strategy trains in processes of its own ({started!r}), where the data map stays: the "
                "callback's data_map in the process that called fit does not hold it. Save it from a callback's "
                "on_train_end, or take it from a checkpoint",
                stacklevel=2,
            )
        endless = trainer.max_epochs is None or trainer.max_epochs < 0
        if trainer.is_global_zero and not endless and not trainer.fast_dev_run:  # which is one epoch, whatever is asked
            self._recording.warn_beyond(trainer.max_epochs, "the trainer's max_epochs")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin an empty map unless this fit goes on with an earlier one."""
        _check_hooks(trainer, pl_module)
        # Batches, which checkpoints keep the number of: of a training by hand the steps may not be counted.
        if trainer.fit_loop.total_batch_idx < 0 and self._recording.num_batches:
            self._recording.reset()
        size = size_of(trainer.train_dataloader)
        if size is not None:
            self._recording.expect(size)
        resumable = hasattr(trainer.train_dataloader, "load_state_dict")
        rows = self._padding.rows_seen if resumable else 0
        self._padding.begin(trainer.train_dataloader)
        self._padding.rows_seen = rows

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """End the epoch before, if it has not ended (after a checkpoint at its end), and begin this one."""
        self._padding.begin(trainer.train_dataloader)
        self._recording.begin_epoch(trainer.current_epoch + 1)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Forget what the batch before recorded."""
        if isinstance(pl_module, DataMapMixin):
            pl_module._pymtg_parts = ()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record the batch."""
        parts = self._parts(trainer, pl_module, outputs, batch)
        whole = self._ids_of_batch(trainer, pl_module, batch)
        if whole is None:
            rows: list[Any] = [self._padding.real_rows(len(ids)) for *_, ids in parts]
        else:
            rows = self._padding.real_rows_of([ids for *_, ids in parts], whole)
        for part, kept in zip(parts, rows, strict=True):
            self._recording.begin_epoch(trainer.current_epoch + 1)
            self._recording.record(*part, kept)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Merge the ranks and take the snapshot."""
        self._recording.end_epoch()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End an epoch that a checkpoint was taken at the end of, and that was the last."""
        self._recording.end_epoch()
        _forget_parts(pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave nothing of the last batch with the module."""
        _forget_parts(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the map and where the epoch stands; of several processes all have to call this, as Lightning does."""
        self._recording.merge()
        return {**self._recording.state_dict(), "rows_seen": self._padding.rows_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._recording.load_state_dict(state_dict)
        self._padding.rows_seen = int(state_dict.get("rows_seen", 0))

    # From a step to logits, targets and ids

    def _parts(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any) -> tuple[tuple[Any, Any, Any], ...]:
        if isinstance(pl_module, DataMapMixin) and pl_module._pymtg_parts:
            return pl_module._pymtg_parts  # and left there for other callbacks
        if outputs is None or (isinstance(outputs, Mapping) and not outputs):
            return ()  # training_step returned None: Lightning skips the batch
        logits, targets = (self._one(what, outputs, batch) for what in ("logits", "targets"))
        ids = self._ids(trainer, outputs, batch)
        return ((logits, targets, ids),)

    def _one(self, what: str, outputs: Any, batch: Any) -> Any:
        where = self._where[what]
        value = _looked_up(where, outputs, batch)
        if value is None:
            numbered = "wrap the training set in pymtg.data.with_ids, " if what == "ids" else ""
            raise RecordingError(
                f"no {what} {_shown(where)}: training_step returned {_keys(outputs)} and the batch is {_keys(batch)}. "
                f"Return them, {numbered}say where they are (DataMapCallback({what}=...)), or use DataMapMixin"
            )
        return value

    def _ids(self, trainer: Any, outputs: Any, batch: Any) -> Any:
        value = _looked_up(self._where["ids"], outputs, batch)
        unsaid = self._where["ids"] == _IDS  # who says where they are is not given others
        if value is None and unsaid and isinstance(batch, (tuple, list)) and gives_ids(trainer.train_dataloader):
            value = batch[0]
        return self._one("ids", outputs, batch) if value is None else value

    def _ids_of_batch(self, trainer: Any, pl_module: Any, batch: Any) -> Any:
        """Return the ids of all rows of the batch, of which the step may record some; None if they are not known."""
        if isinstance(pl_module, DataMapMixin) and pl_module._pymtg_ids is not None:
            return pl_module._pymtg_ids
        where = self._where["ids"]
        if callable(where):
            return None
        found = _looked_up(where, None, batch)
        if found is None and where == _IDS and isinstance(batch, (tuple, list)) and batch:
            first = batch[0]
            if isinstance(first, Tensor) and first.dim() == 1 and not first.is_floating_point():
                return first if gives_ids(trainer.train_dataloader) else None
        return found


def _check_hooks(trainer: Any, pl_module: Any) -> None:
    """Raise where the ids would stay in the batches: of two hooks Lightning calls the data module's alone."""
    source = getattr(trainer, "datamodule", None)
    if not isinstance(pl_module, DataMapMixin) or not isinstance(source, LightningDataModule):
        return
    hook = getattr(source.on_after_batch_transfer, "__func__", source.on_after_batch_transfer)
    if hook is not LightningDataModule.on_after_batch_transfer and gives_ids(trainer.train_dataloader):
        raise RecordingError(
            f"{type(source).__name__} has an on_after_batch_transfer, which Lightning calls in the place of "
            "DataMapMixin's: the ids of pymtg.data.with_ids would stay in the batches. Move it into the module, where "
            "it calls super().on_after_batch_transfer(batch, dataloader_idx) first"
        )


def _forget_parts(pl_module: Any) -> None:
    if isinstance(pl_module, DataMapMixin):
        pl_module._pymtg_parts = None


def _looked_up(where: Where, outputs: Any, batch: Any) -> Any:
    if callable(where):
        return where(outputs, batch)
    if isinstance(where, int):
        whole = isinstance(batch, (tuple, list)) and -len(batch) <= where < len(batch)
        return batch[where] if whole else None
    for place in (outputs, batch):
        if isinstance(place, Mapping) and place.get(where) is not None:
            return place[where]
    return None


def _shown(where: Where) -> str:
    if callable(where):
        return f"from {getattr(where, '__name__', where)!r}"
    return f"at position {where} of the batch" if isinstance(where, int) else f"under the key {where!r}"


def _keys(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"the keys {list(value)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return "a tensor" if isinstance(value, Tensor) else type(value).__name__
