"""The callback that owns the map: snapshots at epochs, a file beside every checkpoint, back from it on resume."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pymtg import _map_io
from pymtg.datamap import DataMap
from pymtg.errors import FileFormatError, InvalidArgumentError, InvalidTypeError
from pymtg.hooks import RecordingError
from pymtg.integrations._optional import needs
from pymtg.integrations._recording import MapRecording
from pymtg.tasks import TaskLayout

try:
    from transformers import TrainerCallback
except ImportError:
    raise needs("huggingface", "transformers and accelerate", "huggingface") from None

__all__ = ["FILE_NAME", "DataMapCallback"]

FILE_NAME = "data_map.safetensors"
"""The map's file in a checkpoint's folder; :meth:`pymtg.DataMap.load` reads it."""


class DataMapCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Keeps a data map over the epochs, checkpoints and processes of a ``transformers.Trainer``.

    Give it to a trainer with :class:`DataMapTrainerMixin` (or to :class:`DataMapTrainer`), which feeds it. A trainer of
    your own can do without the mix-in and call :meth:`record` in its ``compute_loss``.

    At the end of an epoch the processes' maps are added up and a snapshot is taken; every checkpoint gets a file
    ``data_map.safetensors``, from which a resumed training goes on. Training from the start begins an empty map.

    Parameters
    ----------
    layout
        The tasks; by default read from ``model.config`` (``num_labels``, ``problem_type``, ``id2label``).
    num_samples
        M; by default the size of the training set.
    snapshot_epochs
        Which epochs, counted from 1, end with a snapshot: every n-th, those listed, or none (None). A UserWarning names
        those beyond the training's last.
    data_map
        A map to go on with, in place of a new one.
    missing, ddof, snapshots, directory
        Of the new map, as in :class:`pymtg.DataMap`.
    ignore_index
        The label that stands for "missing", -100 by default. NaN stands for it too in floating-point labels.
    restore
        Whether a resumed training goes on with the map beside its checkpoint, or begins an empty one (False).

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For options out of range or of the wrong type; while training, for what does not fit the layout.

    Examples
    --------
    >>> callback = DataMapCallback(snapshot_epochs=[1, 3], missing=True)
    >>> print(callback.data_map)
    None
    """

    def __init__(
        self,
        layout: TaskLayout | None = None,
        num_samples: int | None = None,
        *,
        snapshot_epochs: int | Iterable[int] | None = 1,
        data_map: DataMap | None = None,
        missing: bool = False,
        ddof: int = 0,
        ignore_index: int | None = None,
        snapshots: str = "memory",
        directory: str | os.PathLike[str] | None = None,
        restore: bool = True,
    ) -> None:
        if not isinstance(restore, bool):
            raise InvalidTypeError(f"restore must be True or False; got {restore!r}")
        self.restore = restore
        self._given = data_map is not None
        self._resume_from: str | None = None
        self._epoch, self._ended = 1, 0
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

    def record(self, logits: Tensor, targets: Tensor, sample_ids: Tensor, rows: int | None = None) -> None:
        """Record a training batch: for a ``compute_loss`` of your own, without the mix-in.

        A call without gradients does nothing: evaluation goes through ``compute_loss`` too.

        Raises what :func:`pymtg.functional.multitask_cross_entropy` raises.

        Parameters
        ----------
        logits
            ``[B, num_logits]``; detached here.
        targets
            ``[B, T]`` class numbers (``[B]`` for one task); 0/1 labels may be floating-point.
        sample_ids
            ``[B]`` positions in the data map.
        rows
            How many rows count, the first ones; all by default.
        """
        if torch.is_grad_enabled():
            self._recording.record(logits, targets, sample_ids, rows)

    # What the trainer calls

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin an empty map, or restore the one beside the checkpoint that training resumes from."""
        if self._given and args.auto_find_batch_size:
            raise InvalidArgumentError(
                "data_map must be left out with auto_find_batch_size=True, which begins anew with smaller batches"
            )
        if state.is_world_process_zero:
            self._recording.warn_beyond(state.num_train_epochs, "the training's number of epochs")
        size = _size_of(kwargs.get("train_dataloader"))
        if size is not None:
            self._recording.expect(size)
        self._ended = int(state.epoch or 0)
        if state.global_step == 0 or not self.restore:
            self._recording.reset()
            return
        folder = self._resume_from or _checkpoint(args, state)
        self._load(Path(folder) / FILE_NAME)
        if state.epoch == self._ended:
            self._recording.resume_after(self._ended)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End an epoch that a checkpoint was taken at the end of, and begin this one."""
        # state.epoch is a fraction; one that was cut short by the control leaves it below the epochs that ended
        self._epoch = max(int(state.epoch or 0), self._ended) + 1
        self._recording.begin_epoch(self._epoch)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Merge the processes' maps and take the snapshot."""
        self._recording.end_epoch()
        self._ended = self._epoch

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End an epoch that a checkpoint was taken at the end of, and that was the last."""
        self._recording.end_epoch()
        if self.data_map is None:
            warnings.warn(
                "nothing was recorded: a DataMapCallback belongs to a DataMapTrainer (or DataMapTrainerMixin), or its "
                "record() is called from a compute_loss of your own",
                stacklevel=2,
            )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the map into the folder of the checkpoint that was just written."""
        self._recording.merge()
        folder = _checkpoint(args, state)
        searching = state.is_hyper_param_search  # its checkpoints are in folders that a callback is not told of
        if self.data_map is not None and state.is_world_process_zero and os.path.isdir(folder) and not searching:
            self.data_map.save(os.path.join(folder, FILE_NAME))

    # Parts

    def _load(self, path: Path) -> None:
        try:
            stored = _map_io.load(path)
        except (FileNotFoundError, FileFormatError) as error:
            raise RecordingError(
                f"training resumes without its data map ({error}); DataMapCallback(restore=False) begins an empty one"
            ) from error
        self._recording.restore(stored)


def _checkpoint(args: Any, state: Any) -> str:
    return os.path.join(args.output_dir, f"checkpoint-{state.global_step}")


def _size_of(loader: Any) -> int | None:
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None
